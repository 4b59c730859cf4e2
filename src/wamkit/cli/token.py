"""The token by which a server knows its friends; never an argument, which other users of the machine could read."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "WAMKIT_TOKEN"


def read_token(path: Path | None) -> str | None:
    """The token of a file, else of the environment, else none.

    Raises:
        FileNotFoundError: no such file.
    """
    if path is None:
        return os.environ.get(VARIABLE) or None
    if not path.is_file():
        raise FileNotFoundError(f"expected a file with a token at {path}, found none; write one there")
    return path.read_text(encoding="utf-8").strip()
