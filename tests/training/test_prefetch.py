"""Batches drawn ahead are exactly those that would be drawn in turn."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from regression_family import Windows, make_stages

from wamkit.data.actions import ActionTransform
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import compute_statistics
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.windows import WindowConfig
from wamkit.training.prefetch import drawing_processes, prefetched
from wamkit.types import Batch

SEE = make_stages()[0]


class Recorded(Windows):
    """Notes which batches were asked for, and by which thread."""

    def __init__(self) -> None:
        super().__init__(SEE)
        self.asked: list[tuple[int, str]] = []

    def batch(self, step: int) -> Batch:
        self.asked.append((step, threading.current_thread().name))
        if step == 5:
            raise ValueError("episode 2: video cut short")
        return super().batch(step)


def test_the_same_batches_in_the_same_order_from_another_thread() -> None:
    source, plain = Recorded(), Windows(SEE)
    for number, batch in enumerate(prefetched(source, 1, 5), start=1):
        expected = plain.batch(number)
        assert torch.equal(batch.context, expected.context) and torch.equal(batch.actions, expected.actions)
    assert [number for number, _ in source.asked] == [1, 2, 3, 4], "each once, and none past the end"
    assert all(name.startswith("batches") for _, name in source.asked)


def test_an_error_belongs_to_its_batch() -> None:
    batches = prefetched(Recorded(), 3, 8)
    next(batches), next(batches)
    with pytest.raises(ValueError, match="episode 2: video cut short"):
        next(batches)


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    batches = prefetched(Recorded(), 0, 5)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
    assert list(prefetched(Recorded(), 3, 3)) == []


class Unpacked(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


class Elsewhere(Windows):
    """Draws in two processes; the task of each batch says in which, and in which it was finished."""

    num_processes = 2

    def __init__(self) -> None:
        super().__init__(SEE)

    def draw(self, step: int) -> Batch:
        time.sleep(0.2)  # or the first process to start could have drawn all before the second
        if step == 5:
            raise FileNotFoundError(2, "no such file", "video.mp4")
        if step == 7:
            raise Unpacked("a", "b")
        if step == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C reaches every process of a terminal
        return dataclasses.replace(super().batch(step), task=[str(os.getpid())])

    def finish(self, step: int, drawn: Batch) -> Batch:
        return dataclasses.replace(drawn, task=[*drawn.task, str(os.getpid())])


forks = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@forks
def test_the_same_batches_from_other_processes() -> None:
    plain, before, drawers = Windows(SEE), torch.get_rng_state(), set()
    for number, batch in enumerate(prefetched(Elsewhere(), 0, 5)):
        expected = plain.batch(number)
        assert torch.equal(batch.context, expected.context) and torch.equal(batch.actions, expected.actions)
        drawers.add(batch.task[0])
        assert batch.task[1] == str(os.getpid()) != batch.task[0]
    assert len(drawers) == 2 and not multiprocessing.active_children()
    assert torch.equal(before, torch.get_rng_state()), "no draw was taken from training"
    assert list(prefetched(Elsewhere(), 3, 3)) == []


@forks
@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (5, FileNotFoundError, r"\[Errno 2\] no such file: 'video.mp4'"),
        (7, RuntimeError, "Unpacked: ab"),
        (9, RuntimeError, r"batch [89]: expected it from a process that reads data, got an end .*--data.workers"),
    ],
)
def test_an_error_in_a_process_is_its_batch_s(step: int, kind: type[Exception], message: str) -> None:
    batches = prefetched(Elsewhere(), step - 1, step + 1)
    if step != 9:  # a process that ends takes the others with it, and what they were drawing
        next(batches)
    with pytest.raises(kind, match=message) as caught:
        list(batches)
    assert "Traceback" not in str(caught.value)
    batches.close()
    assert not multiprocessing.active_children()


@forks
def test_closing_ends_the_processes() -> None:
    batches = prefetched(Elsewhere(), 0, 5)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


def loader(cache_frames: int) -> WindowLoader:
    episodes = synthetic_episodes(2, length=14, height=16, width=16)
    dataset = MemoryDataset(episodes, synthetic_robot(height=16, width=16))
    statistics = compute_statistics(dataset)
    return WindowLoader(
        dataset,
        WindowConfig(context=2, chunk=2, action_horizon=4),
        action=ActionTransform(normalizer=Normalizer.from_statistics("minmax", statistics["action"])),
        state=Normalizer.from_statistics("minmax", statistics["state"]),
        batch_size=4,
        seed=0,
        cache_frames=cache_frames,
    )


@forks
def test_processes_where_frames_are_decoded_and_memory_suffices(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoding = loader(0)
    assert drawing_processes(loader(1 << 30), 4) == 0, "all frames lie in memory"
    assert (drawing_processes(decoding, 3), drawing_processes(decoding, 0)) == (3, 0)
    assert 1 <= drawing_processes(decoding, None) <= 8
    assert decoding.bytes_per_window == 2 * 4 * 16 * 16 * 3
    with pytest.raises(ValueError, match=r"data.workers: expected 0 or more processes, got -1"):
        drawing_processes(decoding, -1)
    caplog.set_level("WARNING", logger="wamkit")
    for batches, expected, told in (
        (2 * 2 * 3, 3, None),
        (2 * 2 * 2, 2, "reading in 2 "),
        (1, 0, "reading in a thread"),
    ):
        room = shutil._ntuple_diskusage(1 << 40, 0, batches * 4 * decoding.bytes_per_window)  # type: ignore[attr-defined]
        monkeypatch.setattr(shutil, "disk_usage", lambda path, room=room: room)
        caplog.clear()
        assert drawing_processes(decoding, 3) == expected
        assert (told in caplog.text) if told else not caplog.records
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert drawing_processes(decoding, None) == 0, "the room is shared by the training processes of a machine"


@forks
def test_no_process_outlives_the_one_that_trains() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def train() -> None:
        batches = prefetched(Elsewhere(), 0, 5)
        next(batches)
        sender.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(60)

    training = multiprocessing.get_context("fork").Process(target=train)
    training.start()
    drawing = [Path(f"/proc/{pid}/stat") for pid in receiver.recv()]
    assert len(drawing) == 2 and all(is_running(stat) for stat in drawing)
    training.kill()
    training.join()
    until = time.monotonic() + 20
    while any(is_running(stat) for stat in drawing):
        assert time.monotonic() < until, "they go on without it"
        time.sleep(0.1)


def is_running(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
