"""What can be told of a dataset's files without reading them through: Parquet footers, both ends of a video."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wamkit.data.layout import DatasetError

_END_BYTES = 64 * 1024


def read_footer(path: Path) -> pq.FileMetaData:
    """The footer of a data file.

    Raises:
        FileNotFoundError: there is no such file.
        DatasetError: it cannot be read.
    """
    try:
        return pq.read_metadata(path)
    except FileNotFoundError:
        raise no_data(path) from None
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            f"{path}: expected a complete Parquet file, got one that cannot be read ({error}); copy it again"
        ) from error


def no_data(path: Path) -> FileNotFoundError:
    """The error for a data file that is not there."""
    return FileNotFoundError(f"expected the data file {path}, found none; copy the dataset again or record it again")


def data_file_facts(path: Path, columns: Collection[str]) -> dict[str, list[list[Any]]]:
    """Of each column, and each row group in order: number of values, and smallest and largest where they are kept.

    Args:
        path: a Parquet file.
        columns: those to look at; others may come and go.

    Raises:
        FileNotFoundError: there is no such file.
        DatasetError: it cannot be read.
    """
    footer = read_footer(path)
    facts: dict[str, list[list[Any]]] = {}
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for leaf in range(group.num_columns):
            chunk = group.column(leaf)
            # A vector's path goes on below its column ("action.list.element"), and keys have dots of their own.
            owners = [key for key in columns if f"{chunk.path_in_schema}.".startswith(f"{key}.")]
            if owners:
                kept = chunk.statistics if chunk.is_stats_set else None
                ends = [repr(kept.min), repr(kept.max)] if kept is not None and kept.has_min_max else []
                facts.setdefault(max(owners, key=len), []).append([chunk.num_values, *ends])
    return facts


def video_file_facts(path: Path) -> list[Any]:
    """Size of a video file, and a hash of its first and last 64 KiB.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        digest = hashlib.sha256(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return [size, digest.hexdigest()]
