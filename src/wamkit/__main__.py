"""`python -m wamkit` is the command `wamkit`."""

from __future__ import annotations

import sys

from wamkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
