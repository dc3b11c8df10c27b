"""Callbacks of long operations.

progress(done, total)
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total) as work proceeds, in the unit that the function names: images, bytes, plots. It
runs in the thread that does the work and should return soon."""
