"""What a server adds to a policy, and what sharing calls among robots brings.

    python benchmarks/serving.py --output results/serving/results.json

Overhead: one robot with two cameras of 256 px asks the policy in this process and the same policy behind
`wamkit serve` in another one, in turns, call by call; `overhead_ms` is the median of how much longer an answer took
than the call in this process right before it. The server tells how long it computed, so what is left of each answer's
time is `wire`: packing, loopback, unpacking, checks, and the way to the policy's thread and back. Both are given for
one denoising step, where the policy's own time disturbs least, and for the policy's ten. `floor` is what remains when a
request's bytes go through websockets' own client and server, unread and unchecked, to a thread that computes about as
long as one step: what Python and the machine take for the way alone. torch gets one thread less than there are cores on
both sides, since its threads go on spinning after a call and would take the cores from whoever carries the answer.

Batching: eight robots that ask again as soon as they are answered, at two servers of the same policy, in turns: one
that shares calls among up to eight robots and one that shares none. Counted are actions a second, `action_horizon` for
each answer. Policies are WAV `tiny` and `small` with random weights, which cost what trained ones do.

Prints `ratio NAME VALUE`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from wamkit_client import AsyncClient, Client
from wamkit_client.messages import pack
from websockets.asyncio.server import ServerConnection, serve
from websockets.sync.client import connect

from wamkit.data.synthetic import synthetic_robot
from wamkit.models.wav import config as wav
from wamkit.policy import Policy, load_policy
from wamkit.untrained import untrained_policy
from wamkit.versions import software_versions

ROBOTS = 8
NUM_STEPS = (1, 10)
PAUSE_S = 0.002  # in which torch's threads and the other side come to rest
TASK = "open the drawer"
SIZES = {"tiny": wav.tiny, "small": wav.small}


def make_policy(size: str, camera_px: int) -> Policy:
    """A policy of random weights for a robot with two cameras."""
    config = SIZES[size](action_dim=3, state_dim=3)
    robot = synthetic_robot(height=camera_px, width=camera_px)
    return untrained_policy(config, robot, execution_horizon=config.action_horizon // 2)


@contextlib.contextmanager
def served(folder: Path, device: str, threads: int, *options: str) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", "wamkit", "serve", str(folder), "--port", "0", "--device", device, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[2].rstrip(";")
    finally:
        process.terminate()
        process.wait()


def observation(policy: Policy, seed: int = 0) -> dict[str, Any]:
    """What a robot sees."""
    robot = policy.spec.robot
    camera = robot.cameras[0]
    video = np.random.default_rng(seed).integers(0, 256, (2, camera.height, camera.width, 3), np.uint8)
    state = np.zeros(len(robot.state), np.float32)
    return {"obs": video, "state": state, "prompt": TASK, "executed": policy.spec.execution_horizon}


def overhead(folder: Path, device: str, threads: int, calls: int, num_steps: int) -> dict[str, Any]:
    """One robot, here and through the wire, in turns."""
    policy = load_policy(folder, device=device).varied(planner=None, num_steps=num_steps)
    request = observation(policy)
    inputs = {"state": torch.from_numpy(request["state"])[None], "task": [TASK], "executed": [request["executed"]]}
    policy.reset([0], seeds=[0])
    here, there, computed = [], [], []
    with served(folder, device, threads, "--num-steps", str(num_steps)) as url, Client(url) as client:
        client.reset(seed=0)
        for turn in range(calls + 5):
            begun = time.perf_counter()
            chunk = policy.act([0], video=torch.from_numpy(request["obs"])[None], **inputs)
            chunk.actions.numpy()
            took = time.perf_counter() - begun
            time.sleep(PAUSE_S)
            begun = time.perf_counter()
            reply = client.infer(request)
            if turn >= 5:  # the first ones are warm-up
                here.append(took)
                there.append(time.perf_counter() - begun)
                computed.append(reply["server_timing"]["infer_ms"] / 1000)
            time.sleep(PAUSE_S)
    medians = {
        "here": here,
        "served": there,
        "overhead": [total - local for total, local in zip(there, here, strict=True)],
        "wire": [total - inside for total, inside in zip(there, computed, strict=True)],
    }
    return {
        "calls": calls,
        "num_steps": num_steps,
        "request_bytes": int(request["obs"].nbytes),
        "median_ms": {name: 1000 * statistics.median(values) for name, values in medians.items()},
        "p95_ms": {name: 1000 * float(np.quantile(values, 0.95)) for name, values in medians.items()},
    }


async def _echo(threads: int) -> None:
    """A server that reads nothing: it computes for a while in a thread and tells how long."""
    torch.set_num_threads(threads)
    factor, stream = torch.randn(700, 700), torch.empty(3_000_000)

    def compute() -> float:
        begun = time.perf_counter()
        stream.normal_()
        factor @ factor
        return time.perf_counter() - begun

    async def answer(connection: ServerConnection) -> None:
        async for _ in connection:
            await connection.send(str(await asyncio.get_running_loop().run_in_executor(thread, compute)))

    with ThreadPoolExecutor(1) as thread:
        async with serve(answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
            print("floor at", f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
            await server.wait_closed()


def floor(request: bytes, threads: int, calls: int) -> dict[str, Any]:
    """The way of a request's bytes there and of a short answer back."""
    took, computed = [], []
    command = [sys.executable, __file__, "--echo", "--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[2]
            with connect(url, compression=None, max_size=None) as connection:
                for turn in range(calls + 5):
                    begun = time.perf_counter()
                    connection.send(request)
                    inside = float(connection.recv())
                    if turn >= 5:
                        took.append(time.perf_counter() - begun - inside)
                        computed.append(inside)
                    time.sleep(computed[-1] if computed else PAUSE_S)  # as long as the other side of `overhead` has
        finally:
            process.kill()
    return {
        "calls": calls,
        "median_ms": {"floor": 1000 * statistics.median(took), "computed": 1000 * statistics.median(computed)},
        "p95_ms": {"floor": 1000 * float(np.quantile(took, 0.95))},
    }


async def crowd(url: str, request: dict[str, Any], seconds: float) -> int:
    """Answers that eight robots get in some seconds."""
    clients = [await AsyncClient(url).open() for _ in range(ROBOTS)]
    begun = time.perf_counter()

    async def robot(client: AsyncClient) -> int:
        answers = 0
        while time.perf_counter() - begun < seconds:
            await client.infer(request)
            answers += 1
        return answers

    answers = sum(await asyncio.gather(*map(robot, clients)))
    for client in clients:
        await client.close()
    return answers


def batching(folder: Path, device: str, threads: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Eight robots at a server that shares calls and at one that does not, in turns."""
    policy = load_policy(folder, device=device)
    request, horizon = observation(policy), policy.spec.action_horizon
    found: dict[str, list[float]] = {"shared": [], "alone": []}
    with (
        served(folder, device, threads, "--max-batch", str(ROBOTS)) as shared,
        served(folder, device, threads, "--max-batch", "1") as alone,
    ):
        for turn in range(rounds + 1):
            for name, url in (("shared", shared), ("alone", alone)):
                begun = time.perf_counter()
                answers = asyncio.run(crowd(url, request, seconds if turn else 1.0))
                if turn:  # the first turn is warm-up
                    found[name].append(answers * horizon / (time.perf_counter() - begun))
    best = {name: max(rates) for name, rates in found.items()}
    return {
        "robots": ROBOTS,
        "seconds": seconds,
        "actions_per_second": best,
        "rounds": found,
        "ratio_shared_over_alone": best["shared"] / best["alone"],
    }


def main() -> None:
    """Print and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300, help="of the overhead's two sides, each")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each side of a round of batching")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="of torch")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        asyncio.run(_echo(options.threads))
        return
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "device": options.device,
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "torch_threads": torch.get_num_threads(),
        "versions": software_versions(("torch", "numpy", "websockets", "uvicorn", "starlette", "msgpack")),
        "overhead": {},
        "batching": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            for px, measure in ((256, "overhead"), (64, "batching")):
                policy = make_policy(size, px)
                config = dataclasses.asdict(SIZES[size](action_dim=3, state_dim=3))
                folder = policy.save(Path(temporary) / f"{size}-{px}", config=config, training={})
                if measure == "overhead":
                    for steps in NUM_STEPS:
                        found = overhead(folder, options.device, options.threads, options.calls, steps)
                        found["floor"] = floor(pack(observation(policy)), options.threads, options.calls)
                        result["overhead"][f"{size}, num_steps {steps}"] = found
                        medians = ", ".join(f"{name} {ms:.2f} ms" for name, ms in found["median_ms"].items())
                        lowest = found["floor"]["median_ms"]["floor"]
                        print(f"{size}, {steps} steps: {medians}; floor {lowest:.2f} ms", flush=True)
                else:
                    result["batching"][size] = found = batching(
                        folder, options.device, options.threads, options.seconds, options.rounds
                    )
                    print(f"ratio {size}_shared_over_alone {found['ratio_shared_over_alone']:.2f}", flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
