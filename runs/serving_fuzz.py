"""A server under hostile frames and slow clients, while honest robots go on asking.

    python runs/serving_fuzz.py --output results/serving_fuzz/results.json

Starts `wamkit serve` of WAV `tiny` in a process of its own, sends it frames that were made from valid ones of every
dialect (`hostile_frames.py`; each follows from the seed and its number) over several connections at once, keeps slow
clients of every kind beside them, and asks honestly in between in three dialects: every honest answer has to be, bit
for bit, what the policy gives in this process. The server's memory, threads and open files are measured from outside.
Ends with status 1 when an honest request was answered wrongly or late, a frame that the server could answer was not, a
slow client was not ended, a connection stayed open, the log holds a traceback, memory grew, or the server ended.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hostile_frames import Attempt, attempt, frame, handshake, http
from served_tiny import EPISODE, EXECUTED, ROWS, Alone, Served, observation, served, write_tiny
from wamkit_client import AsyncClient, pack, unpack

from wamkit.versions import software_versions

BOUND_S = 15.0
"""Until when a frame that can be answered has to be."""
SILENCE_S = 0.2
"""How long a client waits for an answer to what needs none."""
SEEDS = range(8)
HONEST_ROWS = (0, 4, 8)
LAST = 10**6  # number of the frame behind a message of vla-eval's, which is always answered

Told = dict[int, list[np.ndarray]]


@dataclass
class Report:
    """What happened."""

    outcomes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, int] = field(default_factory=dict)
    honest: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    slow: dict[str, list[float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    done: int = 0

    def count(self, number: int, kind: str, outcome: str) -> None:
        self.done += 1
        self.outcomes[f"{kind}: {outcome}"] += 1
        self.examples.setdefault(f"{kind}: {outcome}", number)
        if outcome == "no answer":
            self.faults.append(f"frame {number} ({kind}) was not answered")


class Wire:
    """A connection on which anything can be written."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, server: str, path: str | None = None, *, narrow: bool = False) -> Wire:
        """A connection, as a WebSocket with the first message read when there is a path."""
        host, _, port = server.rpartition("/")[2].rpartition(":")
        plain = socket.socket()
        if narrow:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, (host, int(port)))
        wire = cls(*await asyncio.open_connection(sock=plain, limit=1 << (10 if narrow else 24)))
        if path is not None:
            await wire.send(handshake(path))
            head = await asyncio.wait_for(wire.reader.readuntil(b"\r\n\r\n"), BOUND_S)
            if b" 101 " not in head:
                raise ConnectionRefusedError(head.split(b"\r\n")[0].decode())
            if path.startswith("/") and "vla" not in path and not narrow:
                await asyncio.wait_for(wire.message(), BOUND_S)
        return wire

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def message(self) -> tuple[int, bytes] | None:
        """The next frame as opcode and payload, `None` when the connection is over."""
        try:
            head = await self.reader.readexactly(2)
            size = head[1] & 127
            if size > 125:
                width = 2 if size == 126 else 8
                size = int.from_bytes(await self.reader.readexactly(width), "big")
            return head[0] & 15, await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def leave(self) -> None:
        """Without a word."""
        self.writer.transport.abort()


class Attacker:
    """Sends one hostile frame after the other; messages share a connection for as long as it lasts."""

    def __init__(self, server: str, report: Report) -> None:
        self.server = server
        self.report = report
        self.wires: dict[str, Wire] = {}

    async def go(self, numbers: Iterator[int], seed: int) -> None:
        for number in numbers:
            made = attempt(number, seed)
            try:
                outcome = await self.send(number, made)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                outcome = f"closed ({type(error).__name__})"
                self.drop(made.target)
            except TimeoutError:
                outcome = "no answer" if made.is_owed else "left waiting"
                self.drop(made.target)
            self.report.count(number, made.kind, outcome)
        for target in list(self.wires):
            self.drop(target)

    async def send(self, number: int, made: Attempt) -> str:
        if made.target == "openpi":
            path = "/" if number % 4 == 0 else "/?errors=reply"
            return await self.messages(path, made, keeps=path != "/")
        if made.target == "vla-eval":
            return await self.messages("/vla-eval", made, keeps=True)
        return await self.bytes(made)

    async def messages(self, path: str, made: Attempt, *, keeps: bool) -> str:
        wire = self.wires.get(made.target) if keeps else None
        if wire is None:
            wire = await Wire.open(self.server, path)
            if keeps:
                self.wires[made.target] = wire
        data = b"".join(frame(piece) for piece in made.pieces)
        count = len(made.pieces)
        if made.target == "vla-eval":
            told = {"type": "hello", "payload": {}, "seq": LAST, "timestamp": 0.0}
            data, count = data + frame(pack(told)), 10
        await asyncio.wait_for(wire.send(data), BOUND_S)
        outcome = "no reply"
        for _ in range(count):
            message = await asyncio.wait_for(wire.message(), BOUND_S)
            if message is None or message[0] == 8:
                self.drop(made.target)
                return closed(message) if outcome == "no reply" else outcome
            text = outcome_of(message)
            if text == "last":
                break
            outcome = text
        if not keeps:
            wire.leave()
        return outcome

    async def bytes(self, made: Attempt) -> str:
        path = made.target[4:] if made.target.startswith("raw ") else None
        wire = await Wire.open(self.server, path)
        try:
            for piece in made.pieces:
                await asyncio.wait_for(wire.send(piece), BOUND_S)
                await asyncio.sleep(0)
            if made.leaves:
                return "left"
            outcome = "left waiting"
            wait = BOUND_S if made.is_owed else SILENCE_S
            while True:
                try:
                    if path is None:
                        line = await asyncio.wait_for(wire.reader.readline(), wait)
                        return line.decode("latin-1").strip()[9:12] or "closed"
                    message = await asyncio.wait_for(wire.message(), wait)
                except TimeoutError:
                    if made.is_owed:
                        raise
                    return outcome
                if message is None or message[0] == 8:
                    return closed(message)
                outcome = outcome_of(message)
        finally:
            wire.leave()

    def drop(self, target: str) -> None:
        wire = self.wires.pop(target, None)
        if wire is not None:
            wire.leave()


def closed(message: tuple[int, bytes] | None) -> str:
    return "closed" if message is None else f"closed {int.from_bytes(message[1][:2], 'big')}"


def outcome_of(message: tuple[int, bytes]) -> str:
    """What an answer says: a reply, or which error."""
    opcode, payload = message
    if opcode in (9, 10):
        return "pong"
    if opcode == 1:
        return "refused (text)"
    reply = unpack(payload)
    if reply.get("seq") == LAST:
        return "last"
    error = reply.get("error") or (reply.get("payload") if reply.get("type") == "error" else None)
    return f"refused ({error['kind']})" if error else "answered"


# Honest robots.


class Honest:
    """Robots whose every answer is compared."""

    def __init__(self, server: str, told: Told, report: Report, bound_s: float) -> None:
        self.server = server
        self.told = told
        self.report = report
        self.bound_s = bound_s

    async def robots(self, is_over: Callable[[], bool]) -> None:
        turns: tuple[Callable[[int], Awaitable[None]], ...] = (self.openpi, self.vla_eval, self.act)
        number = 0
        while not is_over():
            dialect = turns[number % len(turns)]
            seed = list(self.told)[number % len(self.told)]
            try:
                await dialect(seed)
            except Exception as error:
                self.report.faults.append(f"honest {dialect.__name__}: {type(error).__name__}: {error}"[:300])
                await asyncio.sleep(0.2)
            number += 1

    def take(self, dialect: str, actions: np.ndarray, wanted: np.ndarray, begun: float) -> None:
        seconds = time.perf_counter() - begun
        self.report.latencies_s.append(seconds)
        self.report.honest[dialect] += 1
        if actions.shape != wanted.shape or not np.array_equal(actions, wanted):
            self.report.faults.append(f"honest {dialect}: got other actions than the policy gives here")
        if seconds > self.bound_s:
            self.report.faults.append(f"honest {dialect}: waited {seconds:.1f} s")

    async def openpi(self, seed: int) -> None:
        async with AsyncClient(self.server, timeout_s=2 * self.bound_s) as client:
            await client.reset(EPISODE.task, seed=seed)
            for row, wanted in zip(HONEST_ROWS, self.told[seed], strict=True):
                begun = time.perf_counter()
                reply = await client.infer(observation(row, batching="exact"))
                self.take("openpi", reply["actions"], wanted, begun)
                await asyncio.sleep(0.01)

    async def vla_eval(self, seed: int) -> None:
        wire = await Wire.open(self.server, "/vla-eval")
        try:
            front, wrist = ROWS[0]
            look = {"images": {"front": front, "wrist": wrist}, "states": EPISODE.state[0], "seed": seed}
            look |= {"task_description": EPISODE.task, "batching": "exact"}
            for step in range(EXECUTED):
                begun = time.perf_counter()
                await wire.send(
                    frame(pack({"type": "observation", "payload": look, "seq": step, "timestamp": time.time()}))
                )
                message = await asyncio.wait_for(wire.message(), 2 * self.bound_s)
                assert message is not None, "the connection was closed"
                actions = unpack(message[1])["payload"]["actions"]
                self.take("vla-eval", actions, self.told[seed][0][step], begun)
        finally:
            wire.leave()

    async def act(self, seed: int) -> None:
        images = {}
        for name, image in zip(("front", "wrist"), ROWS[0], strict=True):
            images[name] = {"__numpy__": base64.b64encode(image.tobytes()).decode(), "dtype": "|u1"}
            images[name]["shape"] = list(image.shape)
        request = {"images": images, "state": EPISODE.state[0].tolist(), "prompt": EPISODE.task}
        body = json.dumps({**request, "reset": True, "seed": seed, "batching": "exact"}).encode()
        wire = await Wire.open(self.server)
        try:
            begun = time.perf_counter()
            await wire.send(http("/act", body, "application/json", "X-Session: honest"))
            reply = await asyncio.wait_for(wire.reader.read(-1), 2 * self.bound_s)
            head, _, content = reply.partition(b"\r\n\r\n")
            assert b" 200 " in head, f"{head[:40]!r} {content[:200]!r}"
            self.take("act", np.array(json.loads(content)["actions"], np.float32), self.told[seed][0], begun)
        finally:
            wire.leave()


# Slow clients.


async def trickle(wire: Wire, data: bytes) -> None:
    """A byte a second."""
    for at in range(len(data)):
        await wire.send(data[at : at + 1])
        await asyncio.sleep(1)


async def unread(wire: Wire, data: bytes) -> None:
    """More and more, without reading anything."""
    while True:
        await wire.send(data)
        await asyncio.sleep(0.001)


def slow_clients() -> dict[str, tuple[str | None, Callable[[Wire], Awaitable[None]]]]:
    """By name: the WebSocket's path, and what the client does there for ever."""
    request = observation(0, imagine=True)
    look = frame(pack(request))
    get = b"GET /page/live.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = http("/act", b"[" * 10**6, "application/json")
    nobody = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"

    async def nothing(wire: Wire) -> None:
        await asyncio.sleep(3600)

    async def half(wire: Wire) -> None:
        await wire.send(look)
        wire.writer.write_eof()
        await asyncio.sleep(3600)

    return {
        "sends nothing": (None, nothing),
        "sends a head slowly": (None, lambda wire: trickle(wire, get * 100)),
        "sends a body slowly": (None, lambda wire: trickle(wire, body)),
        "sends a body that nobody reads slowly": (None, lambda wire: trickle(wire, nobody + bytes(1000))),
        "sends a message slowly": ("/", lambda wire: trickle(wire, look)),
        "sends a fragment a second": ("/", lambda wire: trickle(wire, frame(b"x", fin=False) + look)),
        "asks nothing": ("/", nothing),
        "asks nothing, vla-eval": ("/vla-eval", nothing),
        "does not read answers": ("/?errors=reply&slow", lambda wire: unread(wire, look)),
        "does not read pongs": ("/", lambda wire: unread(wire, frame(b"p" * 125, opcode=9) * 500)),
        "does not read pages": (None, lambda wire: unread(wire, get * 20)),
        "sends no more after a request": ("/", half),
    }


async def slow(name: str, server: str, report: Report, bound_s: float) -> None:
    """One slow client, until the server ends it."""
    path, act = slow_clients()[name]
    reads = "does not read" not in name
    wire = await Wire.open(server, path, narrow=not reads)
    begun = time.perf_counter()

    async def until_closed() -> None:
        while await wire.reader.read(1 << 16):
            pass

    doing = [asyncio.ensure_future(act(wire))] + ([asyncio.ensure_future(until_closed())] if reads else [])
    try:
        done, _ = await asyncio.wait(doing, timeout=bound_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            report.faults.append(f"a client that {name} was not ended in {bound_s:g} s")
        for task in done:
            with contextlib.suppress(ConnectionError):
                task.result()
        report.slow.setdefault(name, []).append(round(time.perf_counter() - begun, 1))
    except Exception as error:
        report.faults.append(f"slow, {name}: {type(error).__name__}: {error}")
    finally:
        for task in doing:
            task.cancel()
        await asyncio.gather(*doing, return_exceptions=True)
        wire.leave()


async def attack(
    server: str,
    told: Told,
    *,
    frames: int,
    seed: int = 0,
    workers: int = 10,
    slow_names: Sequence[str] | None = None,
    slow_bound_s: float = 60.0,
    bound_s: float = 10.0,
    look: Callable[[Report], None] | None = None,
) -> Report:
    """Everything at once.

    Args:
        server: address.
        told: chunks of the honest robots' episodes by seed.
        frames: how many hostile ones.
        seed: of them.
        workers: connections that send them at once.
        slow_names: slow clients beside them; all kinds when `None`.
        slow_bound_s: when slow clients have to be ended at the latest.
        bound_s: when honest requests have to be answered at the latest.
        look: called now and then.
    """
    report = Report()
    is_sending = True
    numbers = iter(range(frames))

    async def slow_ones(name: str) -> None:
        while True:
            try:
                await slow(name, server, report, slow_bound_s)
            except (OSError, TimeoutError) as error:
                report.faults.append(f"slow, {name}: {type(error).__name__}: {error}")
            if not is_sending:
                return
            await asyncio.sleep(1)

    async def looking() -> None:
        while look is not None:
            look(report)
            await asyncio.sleep(0.5)

    watching = asyncio.ensure_future(looking())
    slowly = [asyncio.ensure_future(slow_ones(name)) for name in slow_names or slow_clients()]
    honest = asyncio.ensure_future(Honest(server, told, report, bound_s).robots(lambda: not is_sending))
    await asyncio.gather(*(Attacker(server, report).go(numbers, seed) for _ in range(workers)))
    is_sending = False
    await honest
    await asyncio.gather(*slowly)
    watching.cancel()
    return report


def honest_answers(alone: Alone) -> Told:
    """What the honest robots have to get."""
    return {seed: alone.chunks(seed, HONEST_ROWS) for seed in SEEDS}


def summary(report: Report, frames: int, seconds: float) -> dict[str, Any]:
    """The report in numbers."""
    kinds: dict[str, dict[str, int]] = {}
    for name, count in sorted(report.outcomes.items()):
        kind, _, outcome = name.rpartition(": ")
        kinds.setdefault(kind, {})[outcome] = count
    totals = Counter[str]()
    for outcomes in kinds.values():
        totals.update(outcomes)
    latencies = np.array(report.latencies_s or [np.inf])
    return {
        "frames": frames,
        "seconds": round(seconds, 1),
        "outcomes": dict(totals.most_common()),
        "honest": {
            "answers": dict(report.honest),
            "median_ms": round(1000 * float(np.median(latencies)), 1),
            "p99_ms": round(1000 * float(np.quantile(latencies, 0.99)), 1),
            "worst_ms": round(1000 * float(latencies.max()), 1),
        },
        "slow_clients_ended_after_s": {
            name: {"count": len(ended), "least": min(ended), "most": max(ended)} for name, ended in report.slow.items()
        },
        "faults": report.faults[:50],
        "num_faults": len(report.faults),
        "kinds": kinds,
    }


def fuzz(server: Served, told: Told, *, frames: int, seed: int, workers: int, most_growth_mib: float) -> dict[str, Any]:
    """Attack a server process and measure it from outside."""
    memory: list[dict[str, float]] = [{"frames": 0, **server.measure()}]
    marks = [share * frames / 10 for share in range(1, 11)]

    def look(report: Report) -> None:
        while marks and report.done >= marks[0]:
            marks.pop(0)
            memory.append({"frames": report.done, **server.measure()})
            print(json.dumps(memory[-1]), f"faults: {len(report.faults)}", flush=True)

    begun = time.monotonic()
    report = asyncio.run(attack(server.url, told, frames=frames, seed=seed, workers=workers, look=look))
    seconds = time.monotonic() - begun
    left = server.wait_until_left(45)
    memory.append({"frames": frames, **server.measure()})
    alive = server.process.poll() is None
    status, ended = server.stop()
    result = summary(report, frames, seconds)
    warm = next(each for each in memory if each["frames"] >= 0.2 * frames)
    growth = round(memory[-1]["rss_mib"] - warm["rss_mib"], 1)
    checks = {
        "no_fault": not report.faults,
        "alive": alive,
        "no_connection_left": left == 0,
        "no_file_left": memory[-1]["files"] <= memory[0]["files"] + 1,
        "no_traceback": server.tracebacks() == 0,
        "memory_is_flat": growth <= most_growth_mib,
        "ends_in_order": status == 0,
    }
    told_of = {"server": {"memory": memory, "growth_after_warm_mib": growth, "connections_left": left}}
    told_of["server"] |= {"tracebacks": server.tracebacks(), "exit_status": status, "seconds_to_end": ended}
    return {"checks": checks, **told_of, **result}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    parser.add_argument("--help", action="help", help="show this")
    parser.add_argument("--frames", type=int, default=20000, help="hostile frames (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the frames (%(default)s)")
    parser.add_argument("--workers", type=int, default=10, help="connections that send them at once (%(default)s)")
    parser.add_argument("--idle-s", type=float, default=15.0, help="of the server (%(default)s)")
    parser.add_argument("--growth-mib", type=float, default=32.0, help="most growth after a fifth of it (%(default)s)")
    parser.add_argument("--only", type=int, help="send this frame alone, and tell what came of it")
    parser.add_argument("--output", type=Path, help="file for the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = write_tiny(folder / "policy")
        told = honest_answers(Alone(policy))
        with served(policy, folder, "--batching", "exact", "--idle-s", str(options.idle_s)) as server:
            if options.only is not None:
                return alone(server, options.only, options.seed)
            result = fuzz(
                server,
                told,
                frames=options.frames,
                seed=options.seed,
                workers=options.workers,
                most_growth_mib=options.growth_mib,
            )
            log = server.log.read_text(errors="replace")
    print(json.dumps({key: value for key, value in result.items() if key != "kinds"}, indent=2))
    if not all(result["checks"].values()):
        print(log[-6000:], file=sys.stderr)
    settings = {name: getattr(options, name) for name in ("frames", "seed", "workers", "idle_s", "growth_mib")}
    if options.output:
        versions = software_versions(("torch", "numpy", "uvicorn", "websockets", "h11", "starlette", "msgpack"))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"settings": settings, "versions": versions, **result}, indent=2) + "\n")
    return 0 if all(result["checks"].values()) else 1


def alone(server: Served, number: int, seed: int) -> int:
    """One frame of a known number."""
    made = attempt(number, seed)
    print({**asdict(made), "pieces": [piece[:200] for piece in made.pieces]})
    report = Report()
    asyncio.run(Attacker(server.url, report).go(iter((number,)), seed))
    print(report.outcomes, server.log.read_text(errors="replace")[-5000:])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
