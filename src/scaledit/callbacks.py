"""What long work tells its caller while it runs.

progress(done, total)
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total) as work proceeds, in the unit that the function which takes it names: images,
bytes, figures. It is called from the thread that does the work and should return soon."""
