"""The token by which a server knows its friends; never an argument, which other users of the machine could read."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "WAMKIT_TOKEN"


def read_token(path: Path | None) -> str | None:
    """The token of a file, else of the environment, else none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file or a variable without a token that a header can hold.
    """
    if path is None:
        told = os.environ.get(VARIABLE)
        return None if told is None else _token(told, f"the environment variable {VARIABLE}", "set one, or unset it")
    if not path.is_file():
        raise FileNotFoundError(f"expected a file with a token at {path}, found none; write one there")
    return _token(path.read_bytes().decode("ascii", "replace"), f"{path}", "write one there")


def _token(text: str, where: str, advice: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable():
        got = "something else" if token else "nothing"
        raise ValueError(f"expected a token of printable ASCII characters in {where}, got {got}; {advice}")
    return token
