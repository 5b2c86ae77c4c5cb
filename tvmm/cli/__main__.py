"""``python -m tvmm.cli``: the same as ``tvmm``."""

from __future__ import annotations

import sys

from tvmm.cli import main

if __name__ == "__main__":
    sys.exit(main())
