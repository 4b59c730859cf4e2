"""Add a computed column (value targets, for instance) to a recorded dataset, in place and crash-safe."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wamkit.data import features as words
from wamkit.data.atomic import write_atomically, write_json_atomically
from wamkit.data.file_facts import read_footer
from wamkit.data.layout import DatasetError, EpisodeRecord
from wamkit.data.lerobot import LeRobotDataset
from wamkit.lock import FolderLock

logger = logging.getLogger(__name__)


def write_column(
    root: Path | str,
    name: str,
    values: Callable[[int], np.ndarray],
    *,
    channels: tuple[str, ...],
    settings: dict[str, Any],
    ignored: Collection[int] = (),
) -> None:
    """Compute a float32 column for every episode and store it; an existing column of that name is replaced.

    `info.json` declares the column only when every file has it, so after a kill the dataset reads as if it had none (or
    none any more), and calling this again completes it.

    Args:
        root: dataset folder.
        name: feature key, for instance `value`.
        values: episode index -> `[T, d]` (or `[T]`); called once per episode, in order.
        channels: a name for each of the d channels.
        settings: JSON facts about how it was computed; stored in `info.json` under `wamkit` and the column's name.
        ignored: episodes to leave out: `values` is not called for them, and their rows are NaN. A file of theirs alone
            that is damaged stays as it is.

    Raises:
        DatasetError: the name is one of the recorded features, or values have the wrong shape or are not finite.
        OSError: writing failed, for instance on a full disk; files already rewritten keep their other columns.
        BlockingIOError: something else is writing into the folder.
    """
    root = Path(root)
    feature = {"dtype": "float32", "shape": [len(channels)], "names": list(channels)}
    LeRobotDataset(root, ignored=ignored)  # a folder that is no dataset gets no lock file
    with FolderLock(root):
        dataset = LeRobotDataset(root, ignored=ignored)
        own = dataset.wamkit
        if name in dataset.features and name not in own.get("columns", []):
            raise DatasetError(
                f"{root}: {name!r} is a recorded feature, expected the name of an added column; choose another"
            )
        columns = [column for column in own.get("columns", []) if column != name]
        bare = {key: value for key, value in dataset.info["features"].items() if key != name}
        kept = {key: value for key, value in own.items() if key != name} | {"columns": columns}
        if name in dataset.features:
            write_json_atomically(root / words.INFO, dataset.info | {"features": bare, words.WAMKIT: kept})
        files: dict[Path, list[EpisodeRecord]] = {}
        for record in dataset.episodes:
            files.setdefault(dataset.data_path(record.index), []).append(record)
        for path, records in files.items():
            wanted = [record for record in records if record.index not in ignored]
            if not wanted:
                _leave_out(path, name, feature)
                continue
            # An ignored episode may be longer or shorter than its record says.
            is_known = len(wanted) == len(records)
            total = sum(record.length for record in records) if is_known else read_footer(path).num_rows
            rows = np.full((total, len(channels)), np.nan, dtype=np.float32)
            for record in wanted:
                first = dataset.place(record.index).first_row
                rows[first : first + record.length] = _checked(values(record.index), record, name, width=len(channels))
            _rewrite(path, name, rows, words.arrow_type(feature))
        declared = {
            "features": bare | {name: feature},
            words.WAMKIT: kept
            | {
                "columns": [*columns, name],
                name: settings,
                words.SOURCES: own.get(words.SOURCES, {})
                | {name: {"recorded": dataset.recorded_fingerprint(), "ignored": sorted(ignored)}},
            },
        }
        write_json_atomically(root / words.INFO, dataset.info | declared)


def is_of_this_recording(dataset: LeRobotDataset, name: str) -> bool | None:
    """Whether an added column was computed from the rows and frames that are there, for every episode not ignored.

    Args:
        dataset: opened with the episodes that are ignored now.
        name: of the column.

    Returns:
        `None` when the dataset does not say, because the column was added before that was kept.

    Raises:
        FileNotFoundError: a file is missing.
        DatasetError: a data file cannot be read.
    """
    source = dataset.wamkit.get(words.SOURCES, {}).get(name)
    if source is None:
        return None
    is_same = source.get("recorded") == dataset.recorded_fingerprint()
    return is_same and dataset.ignored.issuperset(source.get("ignored", ()))


def _leave_out(path: Path, name: str, feature: dict[str, Any]) -> None:
    """NaN in every row of a file that may be damaged."""
    try:
        rows = np.full((read_footer(path).num_rows, *feature["shape"]), np.nan, dtype=np.float32)
        _rewrite(path, name, rows, words.arrow_type(feature))
    except (DatasetError, FileNotFoundError, pa.ArrowException) as error:
        logger.info("%s, whose episodes are left out, gets no column %r: %s", path, name, error)


def _checked(values: np.ndarray, record: EpisodeRecord, name: str, *, width: int) -> np.ndarray:
    rows = np.asarray(values, dtype=np.float32).reshape(len(values), -1)
    where = f"episode {record.index}, column {name!r}"
    if rows.shape != (record.length, width):
        raise DatasetError(f"{where}: expected [{record.length}, {width}], got {list(rows.shape)}")
    if not np.isfinite(rows).all():
        row = int(np.argwhere(~np.isfinite(rows))[0][0])
        raise DatasetError(f"{where}, row {row}: expected finite numbers, got {rows[row].tolist()}")
    return rows


def _rewrite(path: Path, name: str, values: np.ndarray, kind: pa.DataType) -> None:
    """The same file with one more column, its row groups kept."""
    sink = pa.BufferOutputStream()
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows != len(values):
            raise DatasetError(
                f"{path}: expected {len(values)} rows by the episode table, got {file.metadata.num_rows}; "
                "copy the dataset again"
            )
        schema = file.schema_arrow
        place = schema.get_field_index(name)
        schema = _described((schema if place < 0 else schema.remove(place)).append(pa.field(name, kind)), name)
        start = 0
        with pq.ParquetWriter(sink, schema, compression="snappy") as writer:
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group)
                flat = pa.array(values[start : start + len(table)].ravel())
                is_vector = pa.types.is_fixed_size_list(kind)
                column = pa.FixedSizeListArray.from_arrays(flat, type=kind) if is_vector else flat
                kept = table.drop_columns([name]) if name in table.column_names else table
                start += len(table)
                writer.write_table(kept.append_column(pa.field(name, kind), column), row_group_size=len(table))
    write_atomically(path, memoryview(sink.getvalue()))


def _described(schema: pa.Schema, name: str) -> pa.Schema:
    """The schema, whose description for Hugging Face's `datasets` names the column too; its reader refuses others."""
    metadata = schema.metadata or {}
    try:
        document = json.loads(metadata.get(b"huggingface", b""))
        features = document["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return schema
    value = {"dtype": "float32", "_type": "Value"}
    kind = schema.field(name).type
    is_vector = pa.types.is_fixed_size_list(kind)
    features[name] = {"feature": value, "length": kind.list_size, "_type": "Sequence"} if is_vector else value
    return schema.with_metadata(metadata | {b"huggingface": json.dumps(document).encode()})
