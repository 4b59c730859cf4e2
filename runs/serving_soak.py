"""Many robots at one server for a long time, which come, go and vanish: is every answer the right one, once?

    python runs/serving_soak.py --output results/serving_soak/results.json

Starts `wamkit serve` of WAV `tiny` in a process of its own, which shares policy calls, and lets 32 robots run episodes
of their own seeds, observations, prompts and lengths, with random pauses. Robots leave between two requests or while
one is being answered, with a close frame or without a word, in the middle of sending too, and come back with another
episode. Every answer is compared with what the policy gives one robot alone in this process: first with `--batching
exact` bit for bit, then with `free` up to rounding. Counted are requests and answers (each one that its robot waited
for gets exactly one), and `chunk_id` has to count without gaps, so that no answer is another's.
Ends with status 1 when an answer was wrong, missing or doubled, a connection or file stayed open, the log holds a
traceback, memory grew, or the server did not end in order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hostile_frames import frame
from served_tiny import ROWS, Alone, Served, observation, served, write_tiny
from serving_fuzz import Wire
from wamkit_client import pack, unpack

from wamkit.versions import software_versions

EPISODES = 48
LONGEST = 6
TOLERANCE = 1e-4
BOUND_S = 30.0
ENDINGS = ("goes on", "closes", "vanishes", "closes while asking", "vanishes while asking", "vanishes while sending")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """An episode as some robot may run it: at which rows it asks, and what it has to get."""

    seed: int
    rows: tuple[int, ...]
    chunks: list[np.ndarray]


@dataclass
class Tally:
    """What happened."""

    asked: int = 0
    answered: int = 0
    cut: int = 0  # requests whose robot left before their answer
    episodes: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    batches: Counter[int] = field(default_factory=Counter)
    largest_difference: float = 0.0
    faults: list[str] = field(default_factory=list)


def plan(alone: Alone, seed: int = 0) -> list[Planned]:
    """Episodes that all differ: in their seeds, rows and lengths."""
    draws = np.random.default_rng(seed)
    planned = []
    for episode in range(EPISODES):
        rows = tuple(int(row) for row in draws.integers(0, len(ROWS), int(draws.integers(1, LONGEST + 1))))
        planned.append(Planned(seed=1000 + episode, rows=rows, chunks=alone.chunks(1000 + episode, rows)))
    return planned


class Robot:
    """One robot, which begins an episode again and again until it is told to stop."""

    def __init__(
        self, number: int, server: str, planned: list[Planned], tally: Tally, *, exact: bool, pause_s: float
    ) -> None:
        self.draws = np.random.default_rng([7, number])
        self.name = f"robot {number}"
        self.server = server
        self.planned = planned
        self.tally = tally
        self.exact = exact
        self.pause_s = pause_s
        self.wire: Wire | None = None
        self.answers = 0  # on this connection

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            try:
                await self.episode(self.planned[self.draws.integers(len(self.planned))])
            except Exception as error:
                self.tally.faults.append(f"{self.name}: {type(error).__name__}: {error}"[:300])
                self.drop()
        self.drop()

    async def episode(self, planned: Planned) -> None:
        ending = ENDINGS[int(self.draws.choice(len(ENDINGS), p=(0.5, 0.1, 0.1, 0.1, 0.1, 0.1)))]
        last = len(planned.rows) if ending == "goes on" else int(self.draws.integers(len(planned.rows)))
        self.tally.endings[ending] += 1
        self.tally.episodes += 1
        if self.wire is None:
            self.wire = await Wire.open(self.server, "/?errors=reply")
            self.answers = 0
        for call, row in enumerate(planned.rows):
            request = observation(row)
            if call == 0:
                request |= {"reset": True, "seed": planned.seed}
            data = frame(pack(request))
            if call == last:
                await self.leave(ending, data)
                return
            await self.ask(data, planned, call)
            await asyncio.sleep(self.draws.exponential(self.pause_s))

    async def ask(self, data: bytes, planned: Planned, call: int) -> None:
        wire = self.wire
        assert wire is not None
        self.tally.asked += 1
        begun = time.perf_counter()
        await wire.send(data)
        message = await asyncio.wait_for(wire.message(), BOUND_S)
        assert message is not None and message[0] == 2, f"expected an answer, got {message}"
        self.tally.latencies_s.append(time.perf_counter() - begun)
        reply = unpack(message[1])
        assert "error" not in reply, f"expected an answer, got {reply['error']}"
        self.tally.answered += 1
        self.answers += 1
        self.tally.batches[int(reply["server_timing"]["batch_size"])] += 1
        assert reply["chunk_id"] == self.answers, f"expected chunk {self.answers}, got {reply['chunk_id']}"
        actions, wanted = reply["actions"], planned.chunks[call]
        assert actions.shape == wanted.shape, f"expected actions of shape {wanted.shape}, got {actions.shape}"
        difference = float(np.abs(actions - wanted).max())
        self.tally.largest_difference = max(self.tally.largest_difference, difference)
        if difference > (0 if self.exact else TOLERANCE):
            raise AssertionError(f"actions of seed {planned.seed}, call {call}, differ by {difference:g}")

    async def leave(self, ending: str, data: bytes) -> None:
        """Go, perhaps with a request under way."""
        wire = self.wire
        assert wire is not None
        if "while" in ending:
            self.tally.asked += 1
            self.tally.cut += 1
            await wire.send(data if "asking" in ending else data[: len(data) // 2])
            if "asking" in ending:
                await asyncio.sleep(self.draws.uniform(0, 0.05))
        if ending.startswith("closes"):
            await wire.send(frame(b"\x03\xe8", opcode=8))
        self.drop()

    def drop(self) -> None:
        if self.wire is not None:
            self.wire.leave()
            self.wire = None


async def soak(
    server: str, planned: list[Planned], *, robots: int, seconds: float, exact: bool, pause_s: float = 0.2
) -> Tally:
    """Let robots run for some time.

    Args:
        server: address.
        planned: episodes they choose from.
        robots: how many at once.
        seconds: how long.
        exact: whether answers have to be the same bit for bit.
        pause_s: mean time between an answer and the next request.
    """
    tally = Tally()
    until = time.monotonic() + seconds
    each = [Robot(number, server, planned, tally, exact=exact, pause_s=pause_s) for number in range(robots)]
    await asyncio.gather(*(robot.run(until) for robot in each))
    if tally.asked != tally.answered + tally.cut and not tally.faults:
        tally.faults.append(f"{tally.asked} requests, {tally.answered} answers and {tally.cut} robots that left")
    return tally


def phase(
    policy: Path, folder: Path, planned: list[Planned], batching: str, options: argparse.Namespace
) -> dict[str, Any]:
    """One server, measured from outside."""
    memory: list[dict[str, float]] = []

    async def watched(server: Served) -> Tally:
        begun = time.monotonic()

        async def look() -> None:
            while True:
                memory.append({"seconds": round(time.monotonic() - begun, 1), **server.measure()})
                print(batching, json.dumps(memory[-1]), flush=True)
                await asyncio.sleep(max(1.0, options.seconds / 20))

        looking = asyncio.ensure_future(look())
        try:
            return await soak(
                server.url, planned, robots=options.robots, seconds=options.seconds / 2, exact=batching == "exact"
            )
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking

    with served(policy, folder, "--batching", batching) as server:
        tally = asyncio.run(watched(server))
        left = server.wait_until_left(15)
        memory.append({"seconds": options.seconds / 2, **server.measure()})
        counted = server.counter("wamkit_requests_total")
        tracebacks = server.tracebacks()
        status, ended = server.stop()
        log = server.log.read_text(errors="replace")
    growth = round(memory[-1]["rss_mib"] - memory[len(memory) // 4]["rss_mib"], 1)
    checks = {
        "no_fault": not tally.faults,
        "every_request_answered_once": tally.asked == tally.answered + tally.cut,
        "every_request_counted_once": tally.answered <= counted <= tally.asked,
        "no_connection_left": left == 0,
        "no_file_left": memory[-1]["files"] <= memory[0]["files"] + 1,
        "no_traceback": tracebacks == 0,
        "memory_is_flat": growth <= options.growth_mib,
        "ends_in_order": status == 0,
    }
    if not all(checks.values()):
        print(log[-6000:], file=sys.stderr)
    latencies = np.array(tally.latencies_s or [np.inf])
    return {
        "checks": checks,
        "episodes": tally.episodes,
        "requests": tally.asked,
        "answers": tally.answered,
        "left_before_the_answer": tally.cut,
        "requests_the_server_counted": counted,
        "endings": dict(tally.endings),
        "largest_difference": tally.largest_difference,
        "answers_by_batch_size": {str(size): count for size, count in sorted(tally.batches.items())},
        "median_ms": round(1000 * float(np.median(latencies)), 1),
        "p99_ms": round(1000 * float(np.quantile(latencies, 0.99)), 1),
        "worst_ms": round(1000 * float(latencies.max()), 1),
        "server": {
            "memory": memory,
            "growth_after_warm_mib": growth,
            "connections_left": left,
            "tracebacks": tracebacks,
            "exit_status": status,
            "seconds_to_end": ended,
        },
        "faults": tally.faults[:50],
        "num_faults": len(tally.faults),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    parser.add_argument("--help", action="help", help="show this")
    parser.add_argument("--seconds", type=float, default=300.0, help="of both phases together (%(default)s)")
    parser.add_argument("--robots", type=int, default=32, help="at once (%(default)s)")
    parser.add_argument(
        "--growth-mib", type=float, default=32.0, help="most growth after a quarter of it (%(default)s)"
    )
    parser.add_argument("--output", type=Path, help="file for the results")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = write_tiny(folder / "policy")
        planned = plan(Alone(policy))
        for batching in ("exact", "free"):
            result[batching] = phase(policy, folder, planned, batching, options)
    print(json.dumps(result, indent=2))
    settings = {name: getattr(options, name) for name in ("seconds", "robots", "growth_mib")}
    if options.output:
        versions = software_versions(("torch", "numpy", "uvicorn", "websockets", "h11", "starlette", "msgpack"))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"settings": settings, "versions": versions, **result}, indent=2) + "\n")
    return 0 if all(all(each["checks"].values()) for each in result.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
