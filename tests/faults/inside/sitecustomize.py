"""Python looks for this module when it starts; tests put the folder on the path of processes that they cannot
fork, such as ranks: what is to run in them first lies in a file (jobs.start_ranks)."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

if "RANK" in os.environ:
    pickle.loads(Path(os.environ["SCALEDIT_TESTS_BEFORE"]).read_bytes())()
