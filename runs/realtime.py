"""What asking ahead is worth: a served policy in closed loop at a fixed control rate, its answers delayed.

    python runs/realtime.py --output results/realtime/results.json
    python runs/realtime.py --tasks drawer-open-v3 --episodes 2 --real-episodes 1 --delays-ms 0 200

`wamkit serve` runs the policy in a process of its own; robots in Meta-World ask it through `wamkit_client`. Time goes
on for the robot whether or not it has an action: without one it holds still (no motion, the last gripper command) and
the tick counts. `wait` is `ChunkBroker`, which asks when a chunk was run; `ahead` is `RealTimeChunks`, which asks while
it runs, with the seam blended over 0 or 2 actions.

Success is counted on a virtual clock: an answer is there ceil((delay + computing) * rate) ticks after its observation,
where computing is the fixed --compute-ms, whatever the machine really took, so that robots can share the server and a
busy machine changes nothing. `instant` is the usual evaluation, in which the world waits for each answer. Idle time is
also measured on the real clock: one robot at a time, ticks paced by the wall clock, the delay slept on top of what the
server really takes; there a busy machine shows (`median_request_seconds`, `late_ticks_share`). About forty minutes on
two cores. Rows of the virtual clock that the output holds already are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from wamkit_client import ChunkBroker, Client, RealTimeChunks

from wamkit.atomic import atomic_file
from wamkit.envs import suite_factory
from wamkit.envs.base import EpisodeRequest, Simulator
from wamkit.evaluation.statistics import wilson_interval
from wamkit.versions import SIMULATORS, software_versions

CAMERAS, SIZE = ("corner2", "gripperPOV"), 64
SEAM = 3  # actions from a seam on that are looked at for jumps: the blended ones and the next
METHODS: dict[str, int | None] = {"wait": None, "ahead, blend 0": 0, "ahead, blend 2": 2}  # name -> blend


@dataclass(frozen=True, kw_only=True)
class Job:
    """One episode; `ticks` from an observation to its answer."""

    task: str
    layout: int
    method: str
    ticks: int


@dataclass(kw_only=True)
class Course:
    """What happened in an episode; jumps are mean absolute differences of motion channels between actions."""

    success: bool = False
    ticks: int = 0
    idle: int = 0
    idle_later: int = 0  # after the first action
    requests: int = 0
    dropped: int = 0
    late: int = 0  # ticks that began late, on the real clock
    request_seconds: list[float] = field(default_factory=list)  # on the real clock, without the delay
    seam_jumps: list[float] = field(default_factory=list)
    worst_jumps: list[float] = field(default_factory=list)  # the largest of the `SEAM` jumps from a seam on
    inner_jumps: list[float] = field(default_factory=list)


class EpisodeOver(Exception):
    """Solved, or out of time."""


class Observation(Mapping[str, Any]):
    """What the robot sees when somebody looks, so that only what is sent is rendered."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def __getitem__(self, key: str) -> Any:
        looks: dict[str, Callable[[], Any]] = {
            "images": self._simulator.render,
            "state": self._simulator.state,
            "prompt": lambda: self._simulator.sentence,
        }
        return looks[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(("images", "state", "prompt"))

    def __len__(self) -> int:
        return 3


class World:
    """A scene in which time goes on."""

    def __init__(self, simulator: Simulator, job: Job, layout_seed: int, max_ticks: int) -> None:
        self.simulator, self.max_ticks = simulator, max_ticks
        self.course = Course()
        self.grippers = list(simulator.robot.gripper_channels)
        self.lowest, self.highest = simulator.action_bounds()
        self.last: np.ndarray | None = None
        self._reply: Any = None
        self._jumps: list[float] = []
        self._seams: list[int] = []
        simulator.reset(EpisodeRequest(task=job.task, layout=job.layout, layout_seed=layout_seed, seed=job.layout))

    def tick(self, action: np.ndarray | None, reply: Any = None) -> None:
        """One control step; without an action the robot holds still.

        Args:
            action: physical units.
            reply: that it came from, to notice where one chunk takes over from another.
        """
        course = self.course
        if action is None:
            course.idle += 1
            course.idle_later += self.last is not None
            command = np.zeros(len(self.lowest), np.float32)
            if self.last is not None:
                command[self.grippers] = self.last[self.grippers]
        else:
            command = np.clip(action, self.lowest, self.highest).astype(np.float32)
            if self.last is not None:
                if reply is not self._reply:
                    self._seams.append(len(self._jumps))
                self._jumps.append(float(np.delete(np.abs(command - self.last), self.grippers).mean()))
            self.last, self._reply = command, reply
        outcome = self.simulator.step(command)
        course.ticks += 1
        course.success = outcome.success
        if outcome.success or course.ticks >= self.max_ticks:
            raise EpisodeOver

    def close(self, counts: Any) -> Course:
        """The episode's record."""
        near = {seam + offset for seam in self._seams for offset in range(SEAM)}
        self.course.seam_jumps = [self._jumps[seam] for seam in self._seams]
        self.course.worst_jumps = [max(self._jumps[seam : seam + SEAM]) for seam in self._seams]
        self.course.inner_jumps = [jump for index, jump in enumerate(self._jumps) if index not in near]
        self.course.requests, self.course.dropped = counts.requests, counts.dropped
        return self.course


class Delayed:
    """A client whose answers take longer.

    Args:
        client: answers.
        pause: called between the answer and its delivery, in the asking thread.
    """

    def __init__(self, client: Client, pause: Callable[[], Any]) -> None:
        self.client, self.pause = client, pause
        self.metadata = client.metadata
        self.seconds: list[float] = []  # of each request, without the pause

    def infer(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        begun = time.perf_counter()
        reply = self.client.infer({**observation, "batching": "exact"})
        self.seconds.append(time.perf_counter() - begun)
        self.pause()
        return reply


def virtual(world: World, client: Client, job: Job) -> Course:
    """An episode on the virtual clock."""
    blend = METHODS[job.method]
    client.reset(seed=job.layout)
    if blend is None:
        return _waiting(world, client, job.ticks)
    return _ahead(world, client, job.ticks, blend)


def _waiting(world: World, client: Client, ticks: int) -> Course:
    def hold() -> None:
        for _ in range(ticks):
            world.tick(None)

    broker = ChunkBroker(Delayed(client, hold))
    with contextlib.suppress(EpisodeOver):
        while True:
            action = broker.act(Observation(world.simulator))
            world.tick(action, broker.last)
    return world.close(broker.counts)


def _ahead(world: World, client: Client, ticks: int, blend: int) -> Course:
    gate = threading.Semaphore(0)  # answers are computed at once and let through when their time has come
    due: int | None = None
    with RealTimeChunks(Delayed(client, gate.acquire), blend=blend) as chunks:
        with contextlib.suppress(EpisodeOver):
            while True:
                if due is not None and world.course.ticks >= due:
                    gate.release()
                    chunks.wait()
                    due = None
                asked = chunks.counts.requests
                action = chunks.poll(Observation(world.simulator))
                if chunks.counts.requests > asked:
                    due = world.course.ticks + ticks
                if action is None and due == world.course.ticks:
                    continue  # an instant answer
                world.tick(action, chunks.last)
        gate.release()
        chunks.wait()
        return world.close(chunks.counts)


def real(world: World, client: Client, job: Job, *, delay_s: float, rate_hz: float) -> Course:
    """An episode on the real clock; whoever waits for an answer does so in a thread, and the world goes on."""
    blend = METHODS[job.method]
    client.reset(seed=job.layout)
    slow = Delayed(client, lambda: time.sleep(delay_s))
    with contextlib.ExitStack() as stack:
        asking = stack.enter_context(ThreadPoolExecutor(1))
        broker = ChunkBroker(slow) if blend is None else stack.enter_context(RealTimeChunks(slow, blend=blend))
        pending: Future[np.ndarray] | None = None
        began = time.perf_counter()
        try:
            for number in itertools.count():
                ahead = began + number / rate_hz - time.perf_counter()
                time.sleep(max(0.0, ahead))
                world.course.late += ahead < -0.25 / rate_hz
                seen = dict(Observation(world.simulator))
                if isinstance(broker, RealTimeChunks):
                    action = broker.poll(seen)
                else:
                    pending = pending or asking.submit(broker.act, seen)
                    done = wait_for([pending], 0.005).done
                    action = pending.result() if done else None
                    pending = None if done else pending
                world.tick(action, broker.last)
        except EpisodeOver:
            pass
        if isinstance(broker, RealTimeChunks):
            broker.wait()
        elif pending is not None:
            pending.exception()
        world.course.request_seconds = slow.seconds
        return world.close(broker.counts)


class Robot:
    """A simulator and a connection, in a process of its own."""

    def __init__(self, url: str, layout_seed: int, max_ticks: int) -> None:
        self.simulator: Simulator = suite_factory("metaworld")(cameras=CAMERAS, height=SIZE, width=SIZE)()
        self.client = Client(url)
        self.layout_seed, self.max_ticks = layout_seed, max_ticks

    def world(self, job: Job) -> World:
        return World(self.simulator, job, self.layout_seed, self.max_ticks)


def work(url: str, layout_seed: int, max_ticks: int, jobs: Any, done: Any) -> None:
    """A robot's process: episodes until there are no more."""
    robot = Robot(url, layout_seed, max_ticks)
    for job in iter(jobs.get, None):
        done.put((job, virtual(robot.world(job), robot.client, job)))


def run_virtual(options: argparse.Namespace, url: str, jobs: list[Job]) -> dict[Job, Course]:
    """All episodes, by several robots at once."""
    spawn = multiprocessing.get_context("spawn")
    waiting, done = spawn.Queue(), spawn.Queue()
    for job in jobs:
        waiting.put(job)
    settings = (url, options.layout_seed, options.max_ticks, waiting, done)
    robots = [spawn.Process(target=work, args=settings, daemon=True) for _ in range(options.robots)]
    for robot in robots:
        waiting.put(None)
        robot.start()
    courses: dict[Job, Course] = {}
    while len(courses) < len(jobs):
        if any(robot.exitcode for robot in robots):
            raise RuntimeError("a robot's process has died; its message is above")
        with contextlib.suppress(queue.Empty):
            job, course = done.get(timeout=5)
            courses[job] = course
            if len(courses) % 50 == 0:
                print(f"{time.strftime('%H:%M:%S')} {len(courses)} of {len(jobs)} episodes", flush=True)
    for robot in robots:
        robot.join()
    return courses


def score(courses: list[Course], rate_hz: float) -> dict[str, Any]:
    """Numbers of a setting."""
    solved = [course for course in courses if course.success]
    ticks = sum(course.ticks for course in courses)

    def mean(name: str) -> float | None:
        numbers = [number for course in courses for number in getattr(course, name)]
        return float(np.mean(numbers)) if numbers else None

    return {
        "episodes": len(courses),
        "successes": len(solved),
        "interval": list(wilson_interval(len(solved), len(courses))),
        "mean_ticks_to_success": float(np.mean([course.ticks for course in solved])) if solved else None,
        "mean_seconds_to_success": float(np.mean([course.ticks for course in solved])) / rate_hz if solved else None,
        "idle_share": sum(course.idle for course in courses) / ticks,
        "idle_share_after_first_action": sum(course.idle_later for course in courses) / ticks,
        "requests_per_episode": float(np.mean([course.requests for course in courses])),
        "dropped_per_episode": float(np.mean([course.dropped for course in courses])),
        "seam_jump": mean("seam_jumps"),
        "seam_worst_jump_of_3": mean("worst_jumps"),
        "inner_jump": mean("inner_jumps"),
        "ticks_of_solved": [course.ticks if course.success else None for course in courses],
    }


@contextlib.contextmanager
def serving(policy: Path) -> Iterator[str]:
    """A server of the policy in a process of its own, on one core; gives its address."""
    command = [sys.executable, "-m", "wamkit", "serve", str(policy), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            told = process.stdout.readline()
            if "serving at " not in told:
                raise RuntimeError(f"expected the server to tell its address, got {told!r}")
            yield told.split("serving at ")[1].split(";")[0].strip()
        finally:
            process.terminate()


def time_requests(robot: Robot, task: str, count: int = 20) -> float:
    """Median seconds of a request of a lone robot, its way and the computation together."""
    seen = dict(Observation(robot.world(Job(task=task, layout=0, method="wait", ticks=0)).simulator))
    seconds = []
    for _ in range(count):
        begun = time.perf_counter()
        robot.client.infer(seen)
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--policy", type=Path, default=Path("zoo/wav-metaworld-small"))
    option("--tasks", nargs="+", default=["drawer-open-v3", "window-open-v3"])
    option("--delays-ms", nargs="+", type=float, default=[0, 100, 200, 400, 800], help="put into answers")
    option("--compute-ms", type=float, default=100.0, help="of a request, on the virtual clock (default %(default)s)")
    option("--rate-hz", type=float, default=20.0, help="control rate (default %(default)s)")
    option("--episodes", type=int, default=30, help="layouts per setting, virtual clock (default %(default)s)")
    option("--real-episodes", type=int, default=2, help="layouts per setting, real clock (default %(default)s)")
    option("--layout-seed", type=int, default=1042, help="as in protocol metaworld/v1 (default %(default)s)")
    option("--max-ticks", type=int, default=500)
    option("--robots", type=int, default=6, help="that share the server, virtual clock (default %(default)s)")
    option("--parts", nargs="+", default=["virtual", "real"], choices=["virtual", "real"], help="clocks to run")
    option("--output", type=Path, help="where the other part is kept, if it is there already")
    options = parser.parse_args()
    settings = {key: value for key, value in vars(options).items() if key not in ("output", "parts", "delays_ms")}
    settings |= {"policy": str(options.policy), "ask_after": "half of the execution horizon"}
    result: dict[str, Any] = {
        "settings": settings,
        "versions": software_versions(("torch", "numpy", "websockets", "wamkit-client", *SIMULATORS)),
    }
    if options.output and options.output.exists():
        earlier = json.loads(options.output.read_text())
        if all(earlier[key] == value for key, value in result.items()):
            result = earlier
    with serving(options.policy) as url:
        robot = Robot(url, options.layout_seed, options.max_ticks)
        result["horizons"] = {key: robot.client.metadata[key] for key in ("execution_horizon", "action_horizon")}
        result["lone_request_seconds"] = time_requests(robot, options.tasks[0])
        print(f"a request takes {1000 * result['lone_request_seconds']:.0f} ms", flush=True)
        if "virtual" in options.parts:
            rows = virtual_study(options, url, result.get("virtual_clock", {}).get("rows", []))
            result["virtual_clock"] = {"rows": rows, "all_tasks": totals(rows)}
            keep(options.output, result)
        if "real" in options.parts:
            result["real_clock"] = {"rows": real_study(options, robot), "load_after": os.getloadavg()[0]}
            keep(options.output, result)
        robot.client.close()
    return 0


def virtual_study(options: argparse.Namespace, url: str, earlier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Success, with every delay and method; rows of an earlier run are kept."""
    begun = time.monotonic()
    waits = {"instant": 0}
    for delay in options.delays_ms:
        waits[f"{delay:g}"] = math.ceil((delay + options.compute_ms) / 1000 * options.rate_hz - 1e-9)
    known = {(row["task"], row["delay_ms"], row["method"]): row for row in earlier}
    settings = [
        (task, delay, method, ticks)
        for task in options.tasks
        for delay, ticks in waits.items()
        for method in METHODS
        if delay != "instant" or method == "wait"
    ]
    jobs = {
        (task, delay, method): [
            Job(task=task, layout=layout, method=method, ticks=ticks) for layout in range(options.episodes)
        ]
        for task, delay, method, ticks in settings
        if (task, delay, method) not in known
    }
    courses = run_virtual(options, url, [job for each in jobs.values() for job in each])
    rows = []
    for task, delay, method, ticks in settings:
        key = {"task": task, "delay_ms": delay, "ticks": ticks, "method": method}
        mine = [courses[job] for job in jobs.get((task, delay, method), [])]
        rows.append(key | score(mine, options.rate_hz) if mine else known[task, delay, method])
        show(rows[-1])
    print(f"virtual clock: {time.monotonic() - begun:.0f} s", flush=True)
    return rows


def totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Settings over all tasks; means of the tasks' means."""
    kinds = dict.fromkeys((row["delay_ms"], row["ticks"], row["method"]) for row in rows)
    names = ("mean_seconds_to_success", "idle_share", "seam_jump", "seam_worst_jump_of_3", "requests_per_episode")
    all_tasks = []
    for delay, ticks, method in kinds:
        mine = [row for row in rows if (row["delay_ms"], row["method"]) == (delay, method)]
        solved, episodes = (sum(row[key] for row in mine) for key in ("successes", "episodes"))
        numbers = {name: [row[name] for row in mine if row[name] is not None] for name in names}
        all_tasks.append(
            {"task": "all", "delay_ms": delay, "ticks": ticks, "method": method}
            | {"successes": solved, "episodes": episodes, "interval": list(wilson_interval(solved, episodes))}
            | {name: float(np.mean(each)) if each else None for name, each in numbers.items()}
        )
        show(all_tasks[-1])
    return all_tasks


def real_study(options: argparse.Namespace, robot: Robot) -> list[dict[str, Any]]:
    """Idle time on the real clock, one robot at a time."""
    begun = time.monotonic()
    rows = []
    for delay, method in itertools.product(options.delays_ms, METHODS):
        courses = []
        for task, layout in itertools.product(options.tasks, range(options.real_episodes)):
            job = Job(task=task, layout=layout, method=method, ticks=0)
            courses.append(real(robot.world(job), robot.client, job, delay_s=delay / 1000, rate_hz=options.rate_hz))
        took = float(np.median([seconds for course in courses for seconds in course.request_seconds]))
        late = sum(course.late for course in courses) / sum(course.ticks for course in courses)
        more = {"median_request_seconds": took, "late_ticks_share": late}
        rows.append(
            {"task": "all", "delay_ms": f"{delay:g}", "method": method} | score(courses, options.rate_hz) | more
        )
        show(rows[-1])
    print(f"real clock: {time.monotonic() - begun:.0f} s", flush=True)
    return rows


def show(row: Mapping[str, Any]) -> None:
    low, high = (round(100 * bound) for bound in row["interval"])
    seconds = row["mean_seconds_to_success"]
    print(
        f"{row['task']:<16} {row['delay_ms']:>7} ms  {row['method']:<15} {row['successes']}/{row['episodes']} "
        f"({low}-{high} %)  {math.nan if seconds is None else seconds:.1f} s  idle {100 * row['idle_share']:.1f} %  "
        f"jump {row['seam_jump'] or math.nan:.3f}  requests {row['requests_per_episode']:.1f}",
        flush=True,
    )


def keep(output: Path | None, result: dict[str, Any]) -> None:
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(output) as partial:
            partial.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
