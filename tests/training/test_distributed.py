"""Two processes (gloo, on the CPU) train what one trains, and read what one or two wrote.

Tolerance: sums run in another order, so losses agree to 1e-5 of their size and weights to 1e-5 after six steps at a
learning rate of 1e-2.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from processes import TIMEOUT_S, Processes, Rows, run, stages
from safetensors import safe_open

from wamkit.lock import FolderLock
from wamkit.training.log import read_metrics
from wamkit.weight_files import read_weights

pytestmark = pytest.mark.slow

LAST = "action-step_2"
ALL = [f"{stage.name}-step_{step}" for stage in stages() for step in (1, 2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("logs")) as processes:
        yield processes


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(folder)
    return folder


@pytest.fixture(scope="module")
def together(two: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by two processes."""
    folder = tmp_path_factory.mktemp("together") / "run"
    assert two.run("all stages", folder) == {"steps": 6, "stopped_by": None, "checkpoint": LAST}
    return folder


def cut(folder: Path, copy: Path) -> None:
    """A copy of a run as it was after the first step of its last stage."""
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints" / LAST)


def rows(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "metrics.jsonl")


def policy(folder: Path, checkpoint: str = LAST) -> dict[str, torch.Tensor]:
    return read_weights(folder / "checkpoints" / checkpoint)


def assert_same_run(folder: Path, expected: Path) -> None:
    """Equal loss curves and policies, up to the order of sums."""
    assert [(row["stage"], row["step"]) for row in rows(folder)] == [
        (row["stage"], row["step"]) for row in rows(expected)
    ]
    for row, wanted in zip(rows(folder), rows(expected), strict=True):
        assert row["losses"].keys() == wanted["losses"].keys()
        for key in ("loss", "grad_norm"):
            assert row[key] == pytest.approx(wanted[key], rel=1e-5), (row["stage"], row["step"], key)
        assert row["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
    for checkpoint in ALL:
        got, wanted = policy(folder, checkpoint), policy(expected, checkpoint)
        assert got.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-5, msg=f"{checkpoint}: {name}")


def test_two_processes_have_the_loss_curve_of_one(alone: Path, together: Path) -> None:
    """All three stages, with masks, video_share, several draws, accumulation, clipping and averages."""
    assert sorted(os.listdir(together / "checkpoints")) == sorted(ALL)
    assert all(row["grad_norm"] > 0.5 for row in rows(together) if row["stage"] == "action"), "clipping is tested"
    assert_same_run(together, alone)


def test_each_process_wrote_its_part_and_nothing_is_pickled(together: Path) -> None:
    state = together / "checkpoints" / "action-step_1" / "training_state"
    assert sorted(os.listdir(state)) == ["shards", "state.json"]
    files = sorted((state / "shards").iterdir())
    assert len(files) == 2 and {file.suffix for file in files} == {".safetensors"}
    name = "network.transformer_blocks.0.ff.net.2.weight"
    shapes = []
    for file in files:
        with safe_open(file, framework="pt") as reader:
            shapes.append(reader.get_slice(name).get_shape())
    whole = policy(together)[name.removeprefix("network.")].shape
    assert shapes == [[whole[0] // 2, whole[1]]] * 2


def test_two_continue_what_two_wrote(two: Processes, together: Path, tmp_path: Path) -> None:
    """Bit for bit, as one process does."""
    cut(together, tmp_path / "run")
    assert two.run("all stages", tmp_path / "run") == {"steps": 1, "stopped_by": None, "checkpoint": LAST}
    got, wanted = policy(tmp_path / "run"), policy(together)
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    assert_same_run(tmp_path / "run", together)


def test_two_continue_what_one_wrote(two: Processes, alone: Path, tmp_path: Path) -> None:
    cut(alone, tmp_path / "run")
    assert two.run("all stages", tmp_path / "run") == {"steps": 1, "stopped_by": None, "checkpoint": LAST}
    assert_same_run(tmp_path / "run", alone)


def test_two_continue_in_bf16_what_they_began(two: Processes, together: Path, tmp_path: Path) -> None:
    """With activations computed twice; losses are those of fp32 up to the eight bits of bf16, weights stay fp32."""
    assert two.run("bf16", tmp_path / "run")["steps"] == 6
    for row, wanted in zip(rows(tmp_path / "run"), rows(together), strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=0.02) and row["loss"] != wanted["loss"]
    shutil.copytree(tmp_path / "run", tmp_path / "straight")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / LAST)
    assert two.run("bf16", tmp_path / "run")["steps"] == 1
    got, wanted = policy(tmp_path / "run"), policy(tmp_path / "straight")
    assert all(torch.equal(got[name], tensor) and tensor.dtype == torch.float32 for name, tensor in wanted.items())


def test_one_continues_what_two_wrote(together: Path, alone: Path, tmp_path: Path) -> None:
    cut(together, tmp_path / "run")
    report = run(tmp_path / "run", model=FAMILIES["wav"].build(99))
    assert (report.steps, report.resumed_from.name) == (1, "action-step_1")
    assert_same_run(tmp_path / "run", alone)


def test_a_damaged_or_missing_shard_is_named(together: Path, tmp_path: Path) -> None:
    cut(together, tmp_path / "run")
    shard = sorted((tmp_path / "run" / "checkpoints" / "action-step_1" / "training_state" / "shards").iterdir())[1]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"action-step_1 cannot be resumed: .*Remove that folder"):
        run(tmp_path / "run")
    shard.unlink()
    with pytest.raises(ValueError, match=rf"2 shards, not found: \['{shard.name}'\].*Remove that folder"):
        run(tmp_path / "run")


def test_numbers_that_are_not_finite_stop_all_with_the_message_of_who_saw_them(two: Processes, tmp_path: Path) -> None:
    message = two.run("nan", tmp_path / "run")["error"]
    assert message.startswith(
        "TrainingDiverged: stage 'action', step 3: expected a finite loss and gradient, got loss nan"
    )
    episode = Rows(stages(4)[-1]).source.batch(2).episode_index[3]  # the second row of the second process
    assert f"of which [{episode}] hold numbers that are not finite; the last good checkpoint is" in message
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["action-step_1", "action-step_2"]
    assert len(rows(tmp_path / "run")) == 2


def test_a_signal_to_one_process_stops_all_after_the_same_step(two: Processes, tmp_path: Path) -> None:
    stopped = two.run("signal", tmp_path / "run")
    # The signal comes while a batch is drawn, which is ahead of the step it belongs to.
    assert stopped["stopped_by"] == "SIGTERM" and stopped["steps"] in (1, 2, 3)
    assert stopped["checkpoint"] == f"action-step_{stopped['steps']}"
    assert len(rows(tmp_path / "run")) == stopped["steps"]


def test_a_batch_that_cannot_be_divided_is_refused(two: Processes, tmp_path: Path) -> None:
    message = two.run("odd batch", tmp_path / "run")["error"]
    assert message.startswith("ValueError: expected a batch that 2 processes can divide evenly, got 3 rows")
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_first_process_reaches_all(two: Processes, tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run", doing="training in"):
        message = two.run("all stages", tmp_path / "run")["error"]
    assert "another process is training in" in message


def test_two_killed_processes_leave_a_usable_checkpoint(tmp_path: Path) -> None:
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + TIMEOUT_S
    with Processes(tmp_path) as two:
        two.start("long", tmp_path / "run")
        while not log.exists() or len(log.read_text().splitlines()) < 5:
            assert time.monotonic() < deadline and all(process.poll() is None for process in two.processes)
            time.sleep(0.002)
    # Whatever was being written, the newest complete checkpoint is continued, here by one process.
    report = run(tmp_path / "run", stages=stages(40), keep=2, log=stop_soon)
    assert report.resumed_from is not None and report.resumed_from.name.startswith("video-step_")
    assert report.stopped_by == "SIGTERM" and report.steps == 1


def stop_soon(row: dict[str, Any]) -> None:
    os.kill(os.getpid(), 15)


def test_another_recipe_is_refused_whatever_wrote_it(together: Path, tmp_path: Path) -> None:
    cut(together, tmp_path / "run")
    with pytest.raises(ValueError, match=r"another recipe:\s+- seed: saved 7, now 8"):
        run(tmp_path / "run", seed=8)
    with pytest.raises(ValueError, match=r"precision: saved nothing, now 'bf16'"):
        run(tmp_path / "run", precision="bf16")
