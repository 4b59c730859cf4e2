"""Recording: failures are counted, order is fixed, and an interrupted recording ends as an uninterrupted one."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.record import Attempt, RecordingPlan, record, run_attempts
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.writer import LeRobotWriter
from wamkit.episode import Episode

ROBOT = synthetic_robot(height=16, width=16)
TASKS = ("reach", "push")


def attempt_outcome(task: str, index: int) -> Episode | str:
    """What attempt `index` at `task` ends in: a function of the two, as with a seeded simulator.

    Every third attempt raises, every fifth runs but does not solve the task.
    """
    number = TASKS.index(task) * 1000 + index
    if index % 3 == 1:
        return "the gripper slipped"
    episode = synthetic_episodes(1, length=6 + index % 4, height=16, width=16, seed=number)[0]
    episode = dataclasses.replace(episode, task=f"please {task}", metadata={"simulator_task": task, "seed": number})
    return dataclasses.replace(episode, success=episode.success & False) if index % 5 == 2 else episode


def in_order(plan: RecordingPlan):
    """One attempt after the other."""
    while (request := plan.next_request()) is not None:
        yield Attempt(task=request[0], index=request[1], outcome=attempt_outcome(*request))


def expected_numbers(task: str, target: int) -> list[int]:
    """Attempt numbers of the first `target` successes."""
    good = (index for index in range(1000) if isinstance(e := attempt_outcome(task, index), Episode) and e.is_success)
    return [next(good) for _ in range(target)]


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("recordings") / "uninterrupted"
    with LeRobotWriter(root, ROBOT) as writer:
        plan = RecordingPlan(writer, TASKS, target_successes=4)
        record(plan, in_order(plan))
    return root


def test_successes_are_kept_and_failures_counted(tmp_path):
    seen = []
    with LeRobotWriter(tmp_path, ROBOT) as writer:
        plan = RecordingPlan(writer, TASKS, target_successes=4)
        report = record(plan, in_order(plan), progress=seen.append)
    numbers = expected_numbers("reach", 4)
    assert numbers == [0, 3, 5, 6]
    for task in report.tasks:
        assert (task.successes, task.target, task.next_attempt) == (4, 4, 7)
        assert task.failures == 3 and task.reasons == {"the gripper slipped": 2, "the task was not solved": 1}
    assert report.is_complete and report.new_episodes == 8
    dataset = LeRobotDataset(tmp_path)
    assert [episode.task for episode in dataset.episodes] == ["please reach"] * 4 + ["please push"] * 4
    assert [episode.metadata["attempt"] for episode in dataset.episodes] == numbers * 2
    assert dataset.episodes[5].metadata == {"simulator_task": "push", "seed": 1003, "attempt": 3}
    assert all(dataset.columns(e)["next.success"].any() for e in range(8))
    assert report.new_frames == dataset.num_frames
    assert len(seen) == 14 and sum(task.successes for task in seen[-1]) == 8
    assert json.loads(json.dumps(report.to_dict()))["tasks"][0]["reasons"]["the gripper slipped"] == 2


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_that_finish_in_any_order_give_the_same_dataset(uninterrupted, tmp_path, workers):
    rng = np.random.default_rng(workers)
    running: dict[int, tuple[str, int]] = {}
    run: list[tuple[str, int]] = []

    def submit(worker: int, task: str, index: int) -> None:
        assert worker not in running
        running[worker] = (task, index)
        run.append((task, index))

    def wait():
        for worker in rng.permutation(list(running))[: rng.integers(1, 3)]:
            yield int(worker), attempt_outcome(*running.pop(int(worker)))

    with LeRobotWriter(tmp_path, ROBOT) as writer:
        plan = RecordingPlan(writer, TASKS, target_successes=4)
        report = record(plan, run_attempts(plan, num_workers=workers, submit=submit, wait=wait))
    assert report.is_complete
    assert sorted(run) == sorted((task, index) for task in TASKS for index in range(7))  # none in vain
    assert snapshot(tmp_path) == snapshot(uninterrupted)


@pytest.mark.parametrize("is_last", [False, True])
def test_a_worker_that_was_given_up_leaves_its_attempts_to_the_others(uninterrupted, tmp_path, is_last):
    running: dict[int, tuple[str, int]] = {}
    lost: set[int] = set()

    def submit(worker: int, task: str, index: int) -> None:
        assert worker not in lost, "nothing is asked of it again"
        if index == 4 and (is_last or worker == 1):
            lost.add(worker)
            raise RuntimeError(f"worker {worker} was given up")
        running[worker] = (task, index)

    def wait():
        for worker in list(running):
            yield worker, attempt_outcome(*running.pop(worker))

    with LeRobotWriter(tmp_path, ROBOT) as writer:
        plan = RecordingPlan(writer, TASKS, target_successes=4)
        attempts = run_attempts(plan, num_workers=3, submit=submit, wait=wait)
        if is_last:
            with pytest.raises(RuntimeError, match=r"no simulator is left for 1 attempts: worker \d was given up"):
                record(plan, attempts)
            assert lost == {0, 1, 2} and writer.num_episodes == 2
        else:
            assert record(plan, attempts).is_complete and lost == {1}
            assert snapshot(tmp_path / "meta" / "episodes") == snapshot(uninterrupted / "meta" / "episodes")


def test_a_recording_in_pieces_equals_one_in_one_go(uninterrupted, tmp_path):
    for pieces in (1, 4, 2, 3, 100):
        with LeRobotWriter(tmp_path, ROBOT) as writer:
            plan = RecordingPlan(writer, TASKS, target_successes=4)
            attempts = (attempt for attempt, _ in zip(in_order(plan), range(pieces), strict=False))
            record(plan, attempts)
    assert snapshot(tmp_path) == snapshot(uninterrupted)
    with LeRobotWriter(tmp_path, ROBOT) as writer:
        plan = RecordingPlan(writer, TASKS, target_successes=4)
        assert plan.next_request() is None
        assert record(plan, in_order(plan)).new_episodes == 0
    assert snapshot(tmp_path) == snapshot(uninterrupted)


# Imports once, then forks a recording for every line it reads; prints its process id, its progress, and its end.
RECORDINGS = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("recording", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
while sys.stdin.readline():
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        with module.LeRobotWriter(sys.argv[2], module.ROBOT) as writer:
            plan = module.RecordingPlan(writer, module.TASKS, target_successes=4)
            module.record(plan, module.in_order(plan), progress=lambda _: print("step", flush=True))
        os._exit(0)
    print("dead", os.waitpid(child, 0)[1], flush=True)
"""


def test_a_recording_killed_again_and_again_equals_one_in_one_go(uninterrupted, tmp_path):
    rng = np.random.default_rng(0)
    command = [sys.executable, "-c", RECORDINGS, __file__, str(tmp_path)]
    kills = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as recordings:
        for _ in range(40):
            print(file=recordings.stdin, flush=True)
            process = int(recordings.stdout.readline())
            patience = int(rng.integers(1, 4))
            for line in iter(recordings.stdout.readline, ""):
                patience -= 1
                if line.startswith("dead"):
                    break
                if patience == 0 and kills < 6:
                    time.sleep(float(rng.uniform(0, 0.1)))
                    os.kill(process, signal.SIGKILL)
            if line == "dead 0\n":
                break
            kills += 1
        recordings.stdin.close()
    assert kills >= 3
    assert snapshot(tmp_path) == snapshot(uninterrupted)


def test_encoding_runs_beside_the_attempts(tmp_path):
    """While the simulator waits for nothing, the previous episode is written by another thread."""
    waited = []

    def attempts(plan: RecordingPlan):
        for number in range(3):
            task, index = plan.next_request()
            yield Attempt(task=task, index=index, outcome=synthetic_episodes(1, height=16, width=16)[0])
            # Still inside the iterator: nothing but the encoder's thread can finish the episode now.
            deadline = time.monotonic() + 60
            while plan.writer.num_episodes <= number and time.monotonic() < deadline:
                time.sleep(0.002)
            waited.append(plan.writer.num_episodes)

    with LeRobotWriter(tmp_path, ROBOT) as writer:
        plan = RecordingPlan(writer, ("reach",), target_successes=3)
        assert record(plan, attempts(plan)).is_complete
    assert waited == [1, 2, 3]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


def test_a_task_that_never_succeeds_is_given_up_and_named(tmp_path, caplog):
    def attempts(plan: RecordingPlan):
        while (request := plan.next_request()) is not None:
            outcome = attempt_outcome(*request) if request[0] == "push" else f"stuck at step {request[1]}"
            yield Attempt(task=request[0], index=request[1], outcome=outcome)

    with LeRobotWriter(tmp_path, ROBOT) as writer:
        plan = RecordingPlan(writer, TASKS, target_successes=2, max_attempts=15)
        report = record(plan, attempts(plan))
    reach, push = report.tasks
    assert (reach.successes, reach.failures) == (0, 15) and not report.is_complete
    assert (push.successes, push.failures) == (2, 2)
    assert len(reach.reasons) == 11 and reach.reasons["other"] == 5 and sum(reach.reasons.values()) == 15
    assert "reach: expected 2 successes, got 0 in 15 attempts" in caplog.text
    assert LeRobotDataset(tmp_path).wamkit["notes"]["recording"]["reach"]["failures"] == 15


def test_a_larger_target_adds_what_is_missing(tmp_path):
    for target, new in ((2, 2), (5, 3), (3, 0)):
        with LeRobotWriter(tmp_path, ROBOT) as writer:
            plan = RecordingPlan(writer, ("reach",), target_successes=target)
            assert record(plan, in_order(plan)).new_episodes == new
    numbers = [episode.metadata["attempt"] for episode in LeRobotDataset(tmp_path).episodes]
    assert numbers == expected_numbers("reach", 5)


def test_another_task_keeps_the_first_one_s_position(tmp_path):
    for task in ("reach", "push", "reach"):
        with LeRobotWriter(tmp_path, ROBOT) as writer:
            plan = RecordingPlan(writer, (task,), target_successes=2)
            record(plan, in_order(plan))
    recorded = [(e.metadata["simulator_task"], e.metadata["attempt"]) for e in LeRobotDataset(tmp_path).episodes]
    assert recorded == [(task, number) for task in TASKS for number in expected_numbers(task, 2)]


def test_an_episode_that_cannot_be_written_stops_the_recording_without_a_gap(uninterrupted, tmp_path):
    """The third success does not fit the robot; later ones, already waiting for the encoder, must not be stored."""
    numbers = expected_numbers("reach", 4)

    def attempts(plan: RecordingPlan):
        for attempt in in_order(plan):
            if attempt.task == "reach" and attempt.index == numbers[2]:
                broken = dataclasses.replace(attempt.outcome, actions=attempt.outcome.actions * np.nan)
                attempt = dataclasses.replace(attempt, outcome=broken)
            yield attempt

    with LeRobotWriter(tmp_path, ROBOT) as writer, pytest.raises(ValueError, match="actions: expected finite numbers"):
        plan = RecordingPlan(writer, TASKS, target_successes=4)
        record(plan, attempts(plan))
    assert [episode.metadata["attempt"] for episode in LeRobotDataset(tmp_path).episodes] == numbers[:2]
    with LeRobotWriter(tmp_path, ROBOT) as writer:
        plan = RecordingPlan(writer, TASKS, target_successes=4)
        record(plan, in_order(plan))
    assert snapshot(tmp_path) == snapshot(uninterrupted)


def test_an_interrupt_keeps_what_was_finished(tmp_path):
    def attempts(plan: RecordingPlan):
        for count, attempt in enumerate(in_order(plan)):
            if count == 6:
                raise KeyboardInterrupt
            yield attempt

    with pytest.raises(KeyboardInterrupt), LeRobotWriter(tmp_path, ROBOT) as writer:
        plan = RecordingPlan(writer, TASKS, target_successes=4)
        record(plan, attempts(plan))
    numbers = [episode.metadata["attempt"] for episode in LeRobotDataset(tmp_path).episodes]
    assert numbers == [number for number in expected_numbers("reach", 4) if number < 6]


def test_attempts_nobody_asked_for_are_refused(tmp_path):
    with LeRobotWriter(tmp_path, ROBOT) as writer:
        plan = RecordingPlan(writer, TASKS, target_successes=1)
        with pytest.raises(ValueError, match=r"expected an attempt at one of \['reach', 'push'\], got 'dance'"):
            record(plan, [Attempt(task="dance", index=0, outcome="?")])
        with pytest.raises(ValueError, match="run what `next_request` hands out"):
            record(plan, [Attempt(task="reach", index=0, outcome="?")])
        task, index = plan.next_request()
        outcome = Attempt(task=task, index=index, outcome="slipped")
        with pytest.raises(ValueError, match="from 1 to 0 that is still under way, got attempt 0"):
            record(plan, [outcome, outcome])
        with pytest.raises(ValueError, match="distinct tasks"):
            RecordingPlan(writer, ("reach", "reach"), target_successes=1)
        with pytest.raises(ValueError, match="target of 1 or more"):
            RecordingPlan(writer, TASKS, target_successes=0)
