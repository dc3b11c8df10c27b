"""Windows, which lacks locks between processes, most signals and `fork`.

Every module can be imported there, and models can be loaded, sampled, evaluated and converted. Whatever needs
the missing parts (training, studies, several processes) calls `require`, which refuses with a one-line error.
"""

from __future__ import annotations

import signal

from scaledit.errors import UsageError

try:
    import fcntl  # noqa: F401
except ImportError:
    POSIX = False
else:
    POSIX = True

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
"""The signals that ask a run to stop."""


def require(what: str) -> None:
    """Raises UsageError on Windows. what: the subject of the sentence, in the singular."""
    if not POSIX:
        raise UsageError(f"{what} is not supported on Windows; use WSL")
