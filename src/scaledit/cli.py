"""The command line. Each command imports what it needs when it runs, so that --help and wrong calls are
answered at once.

Exit codes: 0 success, 1 failure, 2 a wrong command, 130 interrupted; commands.rank explains 75 and 143.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType

from scaledit import __version__, terminal
from scaledit.commands.index import COMMANDS, GROUPS, describe, parser
from scaledit.commands.parsing import Example, wrapped
from scaledit.errors import RunError, UsageError, did_you_mean
from scaledit.posix import POSIX, STOP_SIGNALS

__all__ = ["COMMANDS", "EXAMPLES", "GROUPS", "describe", "main", "parser"]

SUMMARY = """scaledit trains, samples and evaluates Diffusion Transformers (DiT). It also plans training runs,
studies how quality scales with compute, and converts checkpoints from and to other programs."""
EXAMPLES = (
    Example("scaledit train digits", "Train on handwritten digits: 90 s on 2 CPU cores"),
    Example("scaledit sample runs/digits --cfg-scale 1.5 --out samples.png", "Sample images from the model"),
    Example("scaledit evaluate runs/digits --reference digits", "Compare its images with real ones"),
)
OPTIONS = (
    ("-h, --help", "explain a command, with examples"),
    ("-q, --quiet", "print only results, warnings and errors"),
    ("--json", "print the result as JSON and nothing else on standard output"),
    ("--version", "print the version of scaledit (without a command)"),
)
"""Those that every command has."""
MORE = """`scaledit COMMAND --help` explains a command. NO_COLOR=1 in the environment turns colors off. The
documentation is in the folder docs/ of the source code; begin with README.md."""

# How long an OpenMP thread spins for the others before it sleeps; read when torch is loaded. With the
# default, a training step on 2 cores takes 30 times as long while another program runs; with this value 2.5
# times, at a cost of 5 % on a quiet machine (docs/log.md).
SPIN_COUNT = "1000"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    argv: the arguments, or None for those of this process. A Python program that passes them gets its signal
    handlers back, and --quiet ends with the command.
    """
    with nullcontext() if argv is None else _restored():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    _interruptible()
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    terminal.survive()
    try:
        return _dispatch(arguments)
    except UsageError as error:
        terminal.complain(error)
        return 2
    except RunError as error:
        terminal.complain(error)
        return 1
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        terminal.complain(f"{where}{error.strerror or error}")
        return 1
    except KeyboardInterrupt as error:
        terminal.complain(f"interrupted; {error}" if str(error) else "interrupted")
        return 130


@contextmanager
def _restored() -> Iterator[None]:
    """Afterwards the signal handlers and --quiet are as they were."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    was_quiet = os.environ.get(terminal.QUIET)
    try:
        yield
    finally:
        if was_quiet is None:
            os.environ.pop(terminal.QUIET, None)
        else:
            os.environ[terminal.QUIET] = was_quiet
        for number, handler in before.items():
            # None: installed by other code than Python's.
            if handler is not None and handler != signal.getsignal(number):
                signal.signal(number, handler)


def _interruptible() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt except while modules are imported, where torch's C++ extensions
    would abort the process."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the caller has its own handler
        signal.signal(signal.SIGINT, _on_interrupt)
    if POSIX:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # scaledit.children blocked it


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    current = frame
    while current is not None:
        if current.f_code.co_filename == "<frozen importlib._bootstrap>":
            if os.environ.get("RANK", "0") == "0":  # one message for all ranks
                os.write(2, b"scaledit: interrupted\n")
            os._exit(130)
        current = current.f_back
    signal.default_int_handler(number, frame)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        terminal.say(*_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        terminal.say(f"scaledit {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}")
    parsed = parser(name).parse(arguments[1:])
    if parsed.quiet:
        terminal.quiet()
    return COMMANDS[name].run(parsed) or 0


def _overview() -> list[str]:
    lines = ["usage: scaledit COMMAND [ARGUMENTS]", "", *wrapped(SUMMARY)]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:"]
        for name, command in commands.items():
            lines += wrapped(command.SUMMARY, f"  {name:<14}", " " * 16)
    lines += ["", "Examples:"]
    lines += [f"  {line}" for example in EXAMPLES for line in example.lines()]
    lines += ["", "Options of every command:", *(f"  {flags:<14}{help}" for flags, help in OPTIONS)]
    return [*lines, "", *wrapped(MORE)]


if __name__ == "__main__":
    sys.exit(main())
