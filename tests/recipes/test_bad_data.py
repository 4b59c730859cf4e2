"""Numbers that are not finite, and value columns that do not fit: training stops before it starts and says where."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_augmentation import tiny_run, write_dataset

from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.source import numeric_column
from wamkit.data.stats import current_statistics
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.recipes.execute import execute
from wamkit.training.log import read_metrics
from wamkit.training.trainer import TrainingDiverged
from wamkit.weight_files import read_weights


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("square") / "dataset")


def damaged(dataset: Path, copy: Path, column: str, episode: int, row: int, channel: int) -> Path:
    """A copy of a dataset with NaN in one cell of its data file; returns that file."""
    shutil.copytree(dataset, copy)
    source = LeRobotDataset(copy)
    path = source.data_path(episode)
    table = pq.read_table(path)
    rows = [list(cell) if isinstance(cell, list) else [cell] for cell in table[column].to_pylist()]
    numbers = table["episode_index"].to_pylist()
    rows[numbers.index(episode) + row][channel] = float("nan")
    kind = table.schema.field(column).type
    values = rows if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) else [cell[0] for cell in rows]
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, table.schema.field(column), pa.array(values, type=kind)), path)
    return path


@pytest.mark.parametrize(
    ("column", "channel", "name"),
    [("action", 1, " 'dy'"), ("observation.state", 2, " 'gripper_opening'"), ("value", 0, "")],
)
@pytest.mark.parametrize("known", [False, True])
def test_nan_in_the_data_names_file_episode_row_and_channel(
    dataset: Path, tmp_path: Path, column: str, channel: int, name: str, known: bool
) -> None:
    """Whether or not statistics were computed before the damage."""
    if known:
        current_statistics(LeRobotDataset(dataset))
    path = damaged(dataset, tmp_path / "copy", column, 2, 7, channel)
    if not known:
        (tmp_path / "copy" / "meta" / "wamkit_statistics.json").unlink(missing_ok=True)
    with pytest.raises(ValueError) as caught:
        execute(tiny_run(tmp_path / "copy", tmp_path / "run"))
    message = str(caught.value)
    assert message.startswith(f"{path}: episode 2, row 7: expected finite numbers in column {column!r}, got nan in ")
    assert f"in channel {channel}{name} (1 of the episode's" in message
    assert not (tmp_path / "run").exists()


def test_the_first_of_several_is_named_and_all_are_counted() -> None:
    episodes = synthetic_episodes(1, length=12)
    source = MemoryDataset(episodes, synthetic_robot())
    columns = {"action": np.array(episodes[0].actions)}
    columns["action"][3, 2], columns["action"][9] = np.inf, np.nan
    with pytest.raises(ValueError, match=r"^episode 0, row 3: .* got inf in channel 2 'gripper' \(4 of the .* 36 "):
        numeric_column(columns, "action", source.episodes[0], source=source)


def test_a_diverging_stage_names_step_and_episodes_and_keeps_what_was_good(dataset: Path, tmp_path: Path) -> None:
    run = tiny_run(dataset, tmp_path / "run")
    last = dataclasses.replace(run.stages[-1], learning_rate=1e30, steps=30, warmup_steps=0, ema_decay=None)
    with pytest.raises(TrainingDiverged) as caught:
        execute(dataclasses.replace(run, stages=(*run.stages[:-1], last), save_every=1))
    message = str(caught.value)
    done = [row["step"] for row in read_metrics(run.output / "metrics.jsonl") if row["stage"] == "action_full"]
    assert message.startswith(f"stage 'action_full', step {len(done) + 1}: expected a finite loss and gradient, got ")
    assert "came from episodes [" in message
    kept = run.output / "checkpoints" / f"action_full-step_{done[-1]}" if done else None
    kept = kept or run.output / "checkpoints" / "value_only-step_2"
    assert f"the last good checkpoint is {kept}" in message
    assert all(tensor.isfinite().all() for tensor in read_weights(kept).values())
    assert not (run.output / "policy").exists()
