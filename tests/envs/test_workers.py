from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from wamkit.envs import gl
from wamkit.envs.base import ChunkOutcome, DemonstrationOptions, EpisodeRequest, Frame
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.envs.workers import WorkerError, WorkerPool
from wamkit.episode import Episode

REQUEST = EpisodeRequest(task="line", layout=1, layout_seed=0, seed=3)


@pytest.fixture(scope="module")
def shared_pool(line_world: ModuleType) -> Iterator[WorkerPool]:
    with WorkerPool(line_world.LineFactory(), 2) as pool:
        yield pool


@pytest.fixture
def pool(shared_pool: WorkerPool) -> Iterator[WorkerPool]:
    """Two idle workers."""
    shared_pool.restarts = 0
    yield shared_pool
    while shared_pool.wait():
        pass


def is_alive(process_id: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(process_id: int, seconds: float = 10.0) -> bool:
    limit = time.monotonic() + seconds
    while is_alive(process_id) and time.monotonic() < limit:
        time.sleep(0.02)
    return not is_alive(process_id)


def test_workers_answer_whenever_they_are_ready(pool: WorkerPool, line_world: ModuleType) -> None:
    assert pool.robot == line_world.ROBOT and len(pool) == 2
    pool.submit(0, "sleep", 0.5)
    pool.submit(1, "reset", REQUEST)
    [(worker, frame)] = pool.wait()
    assert worker == 1 and isinstance(frame, Frame) and pool.is_busy(0) and not pool.is_busy(1)
    assert pool.wait(timeout=0.0) == []
    pool.submit(1, "run_chunk", np.ones((2, 2), dtype=np.float32), True, (1,))
    [(worker, chunk)] = pool.wait()
    assert worker == 1 and isinstance(chunk, ChunkOutcome) and chunk.executed == 2 and chunk.executed_after == 1
    assert pool.wait() == [(0, 0.5)]
    assert pool.wait() == []
    episode = pool.call(0, "demonstrate", REQUEST, DemonstrationOptions())
    assert isinstance(episode, Episode) and episode.is_success


def test_a_busy_or_missing_worker_is_refused(pool: WorkerPool) -> None:
    pool.submit(0, "sleep", 0.1)
    with pytest.raises(ValueError, match="worker 0 is busy"):
        pool.submit(0, "sleep", 0.1)
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        pool.submit(2, "sleep", 0.1)


def test_an_exception_costs_the_submission_and_not_the_worker(pool: WorkerPool) -> None:
    process = pool.process_ids[0]
    pool.submit(0, "reset", EpisodeRequest(task="circle", layout=0, layout_seed=0, seed=0))
    [(_, error)] = pool.wait()
    assert isinstance(error, WorkerError) and error.kind == "raised" and error.error_type == "ValueError"
    assert "unknown task 'circle'" in str(error) and "Traceback" in error.details and "Traceback" not in str(error)
    assert pool.call(0, "reset", REQUEST).sentence == "go to the goal"
    assert pool.process_ids[0] == process and pool.restarts == 0


@pytest.mark.parametrize("how", ["killed", "crashed", "hung"])
def test_a_lost_worker_is_reported_and_replaced(pool: WorkerPool, how: str) -> None:
    lost = pool.process_ids[0]
    if how == "hung":
        pool.deadline_s = 0.3
    pool.submit(0, *(("crash",) if how == "crashed" else ("sleep", 60.0)))
    if how == "killed":
        os.kill(lost, signal.SIGKILL)
    [(worker, error)] = pool.wait(timeout=60.0)
    assert worker == 0 and isinstance(error, WorkerError) and error.kind == ("hung" if how == "hung" else "died")
    assert {"killed": "SIGKILL", "crashed": "SIGSEGV", "hung": "deadline"}[how] in str(error)
    pool.deadline_s = 60.0
    assert not is_alive(lost) and pool.restarts == 1
    assert pool.call(0, "reset", REQUEST).state == pytest.approx([0.0])
    assert pool.process_ids[0] != lost and pool.call(1, "sleep", 0.0) == 0.0


@pytest.mark.parametrize("is_mid_episode", [False, True])
def test_a_worker_that_dies_while_idle_costs_only_an_episode_under_way(pool: WorkerPool, is_mid_episode: bool) -> None:
    pool.call(1, "reset", REQUEST)
    os.kill(pool.process_ids[1], signal.SIGKILL)
    pool._workers[1].process.wait()
    if is_mid_episode:
        pool.submit(1, "run_chunk", np.ones((2, 2), dtype=np.float32))
        [(worker, error)] = pool.wait()
        assert worker == 1 and isinstance(error, WorkerError) and "died while idle (signal SIGKILL" in str(error)
    assert pool.call(1, "reset", REQUEST).sentence == "go to the goal"
    assert pool.restarts == 1


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("no screen; install one", "^no screen; install one$"),
        ("exit", "died while starting .exit status 7"),
        ("hang", "dead"),
    ],
)
def test_a_failing_start_is_one_exception(line_world: ModuleType, failure: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        WorkerPool(
            line_world.LineFactory(fail_at_start=failure), 2, start_deadline_s=1.5 if failure == "hang" else 60.0
        )


def test_replacements_that_cannot_start_are_given_up(line_world: ModuleType, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with WorkerPool(line_world.LineFactory(fail_if_exists=str(broken)), 1) as pool:
        broken.touch()
        os.kill(pool.process_ids[0], signal.SIGKILL)
        errors = []
        with pytest.raises(RuntimeError, match=r"given up: .*licence server is gone"):
            for _ in range(10):
                pool.submit(0, "sleep", 0.0)
                errors += [outcome for _, outcome in pool.wait()]
        assert errors and all(isinstance(error, WorkerError) for error in errors) and pool.restarts <= 3


def test_closing_ends_every_process_even_a_busy_one(line_world: ModuleType) -> None:
    pool = WorkerPool(line_world.LineFactory(), 2)
    processes = pool.process_ids
    pool.submit(0, "sleep", 60.0)
    begun = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - begun < 4.0 and not any(is_alive(process) for process in processes)


def test_the_parents_death_ends_its_workers(line_world: ModuleType) -> None:
    # The script has no `if __name__ == "__main__"` guard, and needs none.
    script = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {os.path.dirname(line_world.__file__)!r})\n"
        "from line_world import LineFactory\n"
        "from wamkit.envs.workers import WorkerPool\n"
        "pool = WorkerPool(LineFactory(), 2)\n"
        "pool.submit(0, 'sleep', 60.0)\n"
        "print(*pool.process_ids, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=240)
    assert parent.returncode == -signal.SIGKILL
    # Nothing else is there: what a simulator prints does not reach the parent's standard output.
    processes = [int(word) for word in parent.stdout.split()]
    assert len(processes) == 2 and all(wait_for_end(process) for process in processes)


def test_an_interrupt_is_the_parents_to_handle(pool: WorkerPool) -> None:
    pool.submit(0, "sleep", 0.5)
    for process in pool.process_ids:
        os.kill(process, signal.SIGINT)
    assert pool.wait(timeout=60.0) == [(0, 0.5)]
    assert pool.call(1, "sleep", 0.0) == 0.0 and pool.restarts == 0


def test_workers_are_limited_to_one_thread(pool: WorkerPool) -> None:
    assert (
        pool.call(0, "environment", "OMP_NUM_THREADS") == "1" and pool.call(0, "environment", "MKL_NUM_THREADS") == "1"
    )


def test_a_pool_needs_a_worker(line_world: ModuleType) -> None:
    with pytest.raises(ValueError, match="at least one worker, got 0"):
        WorkerPool(line_world.LineFactory(), 0)


@pytest.mark.sim
def test_meta_world_in_a_worker(line_world: ModuleType) -> None:
    """No torch inside; a real episode is lost to SIGKILL in the middle, and the next one is the same as ever."""
    request = EpisodeRequest(task="drawer-open-v3", layout=1, layout_seed=42, seed=0)
    with WorkerPool(line_world.ModulesOfMetaWorld(), 1) as pool:
        before = pool.call(0, "demonstrate", request, DemonstrationOptions(max_steps=5))
        modules = pool.call(0, "loaded_modules")
        assert "mujoco" in modules and "metaworld" in modules
        assert not [name for name in modules if name.split(".")[0] == "torch"]
        pool.submit(0, "demonstrate", request, DemonstrationOptions())
        assert pool.wait(timeout=0.3) == []
        os.kill(pool.process_ids[0], signal.SIGKILL)
        [(_, error)] = pool.wait()
        assert isinstance(error, WorkerError) and error.kind == "died"
        after = pool.call(0, "demonstrate", request, DemonstrationOptions(max_steps=5))
    assert before.video.keys() == {"corner2", "gripperPOV"}
    for camera in before.video:
        np.testing.assert_array_equal(after.video[camera], before.video[camera])
    np.testing.assert_array_equal(after.state, before.state)


@pytest.mark.sim
@pytest.mark.parametrize("is_hidden", [False, True])
def test_an_unreadable_gl_is_one_clear_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_hidden: bool
) -> None:
    """This machine, asked for an EGL device that it lacks (or for EGL where it has none), and one without libEGL."""
    if is_hidden:
        (tmp_path / "libEGL.so.1").touch()  # found before the real one, and no library
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    reason = "libEGL" if is_hidden else gl._PROBES["egl"]()
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    expected = f"{re.escape(reason)}.*apt-get install libosmesa6.*libegl1" if reason else "99"
    with pytest.raises(RuntimeError, match=f"MUJOCO_GL=egl.*{expected}"):
        WorkerPool(MetaWorldFactory(), 2)
