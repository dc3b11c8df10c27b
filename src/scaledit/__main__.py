"""`python -m scaledit`: the command line, as `scaledit` runs it."""

import sys

from scaledit.cli import main

if __name__ == "__main__":
    sys.exit(main())
