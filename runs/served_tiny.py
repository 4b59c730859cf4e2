"""A server of WAV `tiny` in a process of its own, measured from outside: what the runs against a server share."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.models.wav import config as wav
from wamkit.policy import load_policy
from wamkit.untrained import untrained_policy

NUM_STEPS = 2
EXECUTED = 4
EPISODE = synthetic_episodes(1, length=30)[0]
ROWS = np.stack([EPISODE.video["front"], EPISODE.video["wrist"]], axis=1)  # rows, views, h, w, c


def write_tiny(folder: Path) -> Path:
    """A policy folder with random weights, which cost what trained ones do."""
    config = wav.tiny(action_dim=3, state_dim=3)
    policy = untrained_policy(config, synthetic_robot(), execution_horizon=EXECUTED)
    return policy.save(folder, config=config.to_dict(), training={"recipe": {}, "versions": {}, "seed": 0})


def observation(row: int, **more: Any) -> dict[str, Any]:
    """What the robot sees in a row of its episode."""
    return {"obs": ROWS[row], "state": EPISODE.state[row], "prompt": EPISODE.task, "executed": EXECUTED, **more}


class Alone:
    """What the policy gives one robot in this process."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.policy = load_policy(folder, num_steps=NUM_STEPS)

    def chunks(self, seed: int, rows: Sequence[int]) -> list[np.ndarray]:
        """Chunks of an episode in which the robot asks at these rows."""
        self.policy.reset([0], seeds=[seed])
        return [
            self.policy.act(
                [0],
                video=torch.from_numpy(ROWS[row][None]),
                state=torch.from_numpy(EPISODE.state[row][None]),
                task=[EPISODE.task],
                executed=[EXECUTED],
            )
            .actions[0]
            .numpy()
            for row in rows
        ]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server process, seen from outside."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def host(self) -> str:
        return self.url.rpartition("/")[2].rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def measure(self) -> dict[str, float]:
        """Resident memory in MiB, threads, and open files, sockets among them."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        return {
            "rss_mib": round(int(fields["VmRSS"].split()[0]) / 1024, 1),
            "threads": int(fields["Threads"]),
            "files": len(os.listdir(f"/proc/{self.process.pid}/fd")),
        }

    def counter(self, name: str) -> float:
        """The sum of a counter over its labels, as `/metrics` tells it."""
        with urllib.request.urlopen(self.url.replace("ws", "http", 1) + "/metrics", timeout=20) as reply:
            lines = reply.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))

    def wait_until_left(self, seconds: float) -> float:
        """Connections that are still open after some time for them to end."""
        until = time.monotonic() + seconds
        while self.counter("wamkit_connections") and time.monotonic() < until:
            time.sleep(0.2)
        return self.counter("wamkit_connections")

    def tracebacks(self) -> int:
        """Lines of the log that begin one."""
        return self.log.read_text(errors="replace").count("Traceback")

    def stop(self) -> tuple[int, float]:
        """Exit status and seconds of an orderly end."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60), round(time.monotonic() - begun, 2)


@contextlib.contextmanager
def served(policy: Path, folder: Path, *options: str) -> Iterator[Served]:
    """`wamkit serve` of a policy at a free port; its log is `server.log` in `folder`."""
    log = folder / "server.log"
    command = [sys.executable, "-m", "wamkit", "serve", str(policy), "--port", "0", "--num-steps", str(NUM_STEPS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving at "):
            raise RuntimeError(f"expected a server, got {line!r} and the log {log.read_text()[-2000:]}")
        yield Served(process=process, url=line.split()[2].rstrip(";"), log=log)
    finally:
        process.kill()
        process.wait()
