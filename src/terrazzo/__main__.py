"""The command line as ``python -m terrazzo``, the same as the command ``terrazzo``."""

from __future__ import annotations

import sys

from terrazzo.cli import main

if __name__ == "__main__":
    sys.exit(main())
