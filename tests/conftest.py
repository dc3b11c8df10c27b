"""Settings of every test: one thread per worker (two workers use two cores; small tensors gain nothing)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what it puts into the background with Ctrl-C ignored, and so would be all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # tests' own modules, and benchmarks


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """A test that fails must not leave what it held or started."""
    yield
    if "processes" in sys.modules:
        started = sys.modules["processes"].STARTED
        while started:
            started.pop().kill()
