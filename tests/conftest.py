"""Settings of every test: one thread a worker (two workers fill two cores; small tensors gain nothing)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # tests' own modules, and benchmarks
