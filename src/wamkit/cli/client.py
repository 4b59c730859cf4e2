"""Ask a server as a robot would: say who answers, what it wants to be sent, and how long its answers take.

Sends observations of noise, so nothing moves. On the robot's own computer it tells what the network adds.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from wamkit.cli.token import read_token


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit client`."""

    server: Annotated[str, tyro.conf.Positional] = "ws://localhost:8000"
    """Address of a `wamkit serve`."""
    calls: int = 20
    """Observations to send; 0 sends none."""
    task: str = ""
    """Sentence to send; by default one that the policy was trained on."""
    timeout_s: float = 30.0
    """How long to wait for an answer."""
    token_file: Path | None = None
    """File with the server's token; the environment variable WAMKIT_TOKEN does the same."""
    json: bool = False
    """Print JSON instead of lines."""


def run(options: Options) -> int:
    """Ask, and print."""
    if options.calls < 0 or options.timeout_s <= 0:
        raise ValueError(
            f"expected --calls of 0 or more and --timeout-s above 0, got {options.calls} and {options.timeout_s}"
        )
    from wamkit_client import Client

    with Client(options.server, token=read_token(options.token_file), timeout_s=options.timeout_s) as client:
        told = client.metadata
        if told.get("server") != "wamkit":
            raise ValueError(f"expected a wamkit server at {options.server}, got another one, which tells {told}")
        times = _ask(client, told, options)
    found = {"metadata": {key: value for key, value in told.items() if key != "policy_spec"}, "latency_ms": times}
    print(json.dumps(found, indent=2) if options.json else _lines(options.server, told, times))
    return 0


def _ask(client: Any, told: dict[str, Any], options: Options) -> dict[str, dict[str, float]]:
    """Median and 95 % quantile of the whole time, the policy's and the rest, in milliseconds."""
    import numpy as np

    draws = np.random.default_rng(0)
    task = options.task or next(iter(told["tasks"]), "do nothing")
    client.reset(task, seed=0)
    total, policy = [], []
    for _ in range(options.calls):
        images = {
            camera["name"]: draws.integers(0, 256, (camera["height"], camera["width"], 3), np.uint8)
            for camera in told["cameras"]
        }
        begun = time.perf_counter()
        reply = client.infer({"images": images, "state": np.zeros(told["state_dim"], np.float32)})
        total.append(1000 * (time.perf_counter() - begun))
        policy.append(reply["server_timing"]["infer_ms"])
    if not total:
        return {}
    parts = {"total": total, "policy": policy, "rest": list(np.subtract(total, policy))}
    return {
        name: {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}
        for name, values in parts.items()
    }


def _lines(server: str, told: dict[str, Any], times: dict[str, dict[str, float]]) -> str:
    planner = told["planner"]
    search = "none" if planner is None else f"{planner['iterations']} x {planner['num_videos']} futures"
    lines = [
        f"{server}: {told['identity'].get('name', '')} ({told['family']}, {told['robot']}), wamkit "
        f"{told['server_version']}",
        f"send     {told['send']}",
        f"get      {told['action_horizon']} actions of {told['action_dim']} ({', '.join(told['action'])}), "
        f"{told['action_kind']}; action_horizon {told['action_horizon']}, of which execution_horizon "
        f"{told['execution_horizon']} are meant to be run",
        f"planner  {search}; num_inference_steps {told['num_inference_steps']}",
        f"tasks    {'; '.join(told['tasks']) or 'open'}",
    ]
    lines += [f"{name:<8} {part['median']:.1f} ms median, {part['p95']:.1f} ms at 95 %" for name, part in times.items()]
    if times:
        lines.append(_advice(told, times["total"]["p95"]))
    return "\n".join(lines)


def _advice(told: dict[str, Any], answer_ms: float) -> str:
    """Whether to ask ahead: it hides up to half of the action horizon, and can hurt beyond (see `results/realtime`)."""
    control_ms = 1000 / told["control_hz"]
    half_ms, run_ms = told["action_horizon"] / 2 * control_ms, told["execution_horizon"] * control_ms
    half = f"half of action_horizon ({half_ms:.0f} ms at {told['control_hz']:g} Hz)"
    if answer_ms <= half_ms:
        return f"use      RealTimeChunks: answers take less than {half}, so they come in time"
    return (
        f"use      ChunkBroker: answers take longer than {half}, where asking ahead can cost success; the robot waits, "
        f"{answer_ms:.0f} ms after every {run_ms:.0f} ms of moving (execution_horizon)"
    )
