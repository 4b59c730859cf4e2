"""Frames that no honest client sends, made from valid ones: every one follows from the seed and its number."""

from __future__ import annotations

import base64
import copy
import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from PIL import Image
from served_tiny import EXECUTED, ROWS, observation
from wamkit_client import pack

FRONT, WRIST = ROWS[0]
BIG = 1 << 20
FLIPS = "flip", "truncate", "duplicate", "splice", "length", "insert"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a hostile client does once.

    Args:
        kind: for counting.
        target: `openpi` or `vla-eval` (messages on a WebSocket that goes on), `raw /path` (bytes on a fresh WebSocket),
            or `tcp` (bytes on a fresh connection).
        pieces: messages, or bytes of the connection; written one after the other.
        is_owed: whether the server has all that it needs for an answer.
        leaves: whether the client goes as soon as it has sent all, without a word.
    """

    kind: str
    target: str
    pieces: tuple[bytes, ...]
    is_owed: bool = True
    leaves: bool = False


def attempt(number: int, seed: int) -> Attempt:
    """The hostile frame of a number."""
    draws = np.random.default_rng([seed, number])
    weights = np.array([weight for weight, _ in MAKERS], np.float64)
    _, make = MAKERS[draws.choice(len(MAKERS), p=weights / weights.sum())]
    return make(draws)


def frame(payload: bytes, *, opcode: int = 2, fin: bool = True, mask: bool = True, length: int | None = None) -> bytes:
    """A WebSocket frame; `length` is what its head says."""
    size = len(payload) if length is None else length
    head = bytes([(fin << 7) | opcode])
    flag = mask << 7
    if size < 126:
        head += bytes([flag | size])
    elif size < 1 << 16:
        head += bytes([flag | 126]) + struct.pack("!H", size)
    else:
        head += bytes([flag | 127]) + struct.pack("!Q", size)
    return head + (b"\0\0\0\0" if mask else b"") + payload  # the mask of zeros leaves the payload as it is


def handshake(path: str, *more: str, method: str = "GET") -> bytes:
    """The request that opens a WebSocket."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def http(path: str, body: bytes, kind: str, *more: str, method: str = "POST", length: int | None = None) -> bytes:
    """An HTTP request that asks for the connection's end."""
    size = len(body) if length is None else length
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Type: {kind}", *more]
    return ("\r\n".join([*head, f"Content-Length: {size}"]) + "\r\n\r\n").encode("latin-1") + body


def form(parts: dict[str, bytes]) -> tuple[bytes, str]:
    """A multipart body and its type."""
    body = b""
    for name, data in parts.items():
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode()
        body += data + b"\r\n"
    return body + b"--b--\r\n", "multipart/form-data; boundary=b"


# Valid messages, from which the others are made.


def valid(draws: np.random.Generator) -> dict[str, Any]:
    """A request of openpi's, WAV's or our own."""
    row = int(draws.integers(30))
    styles: list[dict[str, Any]] = [
        observation(row, seed=row, reset=True),
        observation(row, execution_step=int(draws.integers(1, 6)), state_zeropadding=[3, 0], num_inference_steps=2),
        {
            "observation/front": ROWS[row][0],
            "observation/wrist": ROWS[row][1],
            "observation/state": observation(row)["state"],
            "prompt": "go",
        },
        {"images": {"front": FRONT, "wrist": WRIST}, "state": [0.1, 0.2, 0.3], "task": "<reset>go", "value": True},
        observation(row, explore_config={"explore_steps": 1, "dynamic_groups": 4, "value_groups": 2}, deadline_ms=500),
        {"reset": True, "prompt": "go", "seed": 3},
        {"obs": ROWS[row], "compute_kv_cache": True},
        observation(row, imagine=True, batching="free", cameras=["front", "wrist"]),
    ]
    return styles[draws.integers(len(styles))]


def valid_frame(draws: np.random.Generator) -> dict[str, Any]:
    """A frame of vla-eval's."""
    picture = picture_bytes(FRONT)
    image = {"__image__": True, "format": "png", "data": picture, "shape": [32, 32, 3]}
    raw = {"__image__": True, "format": "raw", "data": WRIST.tobytes(), "shape": [32, 32, 3], "dtype": "|u1"}
    look = {"images": {"front": image, "wrist": raw}, "states": observation(0)["state"], "task_description": "go"}
    kinds = [("hello", {"harness_version": "0.8.0", "protocol_version": 1}), ("episode_start", {"task": {}})]
    kinds += [("observation", look)] * 4 + [("episode_end", {}), ("error", {"error": "x"})]
    kind, payload = kinds[draws.integers(len(kinds))]
    return {"type": kind, "payload": payload, "seq": int(draws.integers(1000)), "timestamp": 0.5}


def valid_json(draws: np.random.Generator) -> dict[str, Any]:
    """A request of `/act`."""
    array = {"__numpy__": base64.b64encode(FRONT.tobytes()).decode(), "dtype": "|u1", "shape": [32, 32, 3]}
    images = {"front": array, "wrist": WRIST.tolist()}
    styles: list[dict[str, Any]] = [
        {"images": images, "state": [0.1, 0.2, 0.3], "instruction": "go", "unnorm_key": "x"},
        {"obs": ROWS[0].tolist(), "state": [0.1, 0.2, 0.3], "prompt": "go", "execution_step": 2},
    ]
    chosen = styles[draws.integers(2)]
    return chosen if draws.random() < 0.8 else {"encoded": json.dumps(chosen)}


def picture_bytes(image: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format=kind)
    return out.getvalue()


# Mutations.


def mutated(draws: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Bytes with something wrong."""
    at, how = int(draws.integers(max(1, len(data)))), FLIPS[draws.integers(len(FLIPS))]
    if draws.random() < 0.6:
        at = min(at, int(draws.integers(1, 200)))  # what stands for structure lies mostly in front
    if how == "truncate":
        return data[:at]
    if how == "duplicate":
        return data[:at] + data[max(0, at - int(draws.integers(1, 100))) :]
    if how == "splice":
        return data[:at] + other[int(draws.integers(max(1, len(other)))) :]
    if how == "insert":
        return data[:at] + draws.bytes(int(draws.integers(1, 20))) + data[at:]
    changed = bytearray(data)
    if how == "length":  # bytes that say how long what follows is
        marks = [i for i, byte in enumerate(changed[:400]) if byte in _LENGTHS or 0x80 <= byte < 0xA0]
        at = marks[draws.integers(len(marks))] if marks else 0
        changed[at : at + 3] = bytes([draws.choice(_LENGTHS)]) + draws.bytes(2)
    for _ in range(int(draws.integers(1, 6)) if how == "flip" else 0):
        place = min(len(changed) - 1, int(draws.integers(max(1, at + 1))))
        if changed:
            changed[place] ^= 1 << int(draws.integers(8))
    return bytes(changed)


_LENGTHS = (0xC4, 0xC5, 0xC6, 0xC7, 0xC9, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def array(data: bytes, dtype: Any, shape: Any) -> dict[bytes, Any]:
    """What stands for an array, whether it is one or not."""
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def wrong(draws: np.random.Generator) -> Any:
    """A value that hardly fits anywhere."""
    values: list[Callable[[], Any]] = [
        lambda: None,
        lambda: True,
        lambda: -1,
        lambda: 2**63,
        lambda: 101,
        lambda: float("nan"),
        lambda: float("-inf"),
        lambda: 1e300,
        lambda: "",
        lambda: "x" * int(draws.integers(1, 20000)),
        lambda: "\x00\ud7ff\u2028<reset>",
        lambda: b"",
        lambda: draws.bytes(300),
        list,
        dict,
        lambda: nested(int(draws.integers(2, 400))),
        lambda: [[]] * 2000,
        lambda: {"a": {"a": {"a": {}}}},
        lambda: np.zeros((2, 32, 32, 3), np.float16),
        lambda: np.full((2, 3, 32, 32), np.nan, np.float32),
        lambda: np.full((2, 3, 32, 32), 0.5, np.float64),
        lambda: np.zeros((2, 32, 32, 3), np.int64),
        lambda: np.zeros((0, 3), np.uint8),
        lambda: np.zeros((3, 2), np.float32),
        lambda: np.arange(3),
        lambda: np.array([True, False]),
        lambda: np.float16(3),
        lambda: np.array(5),
        lambda: array(b"", "|u1", [0, 2**40]),
        lambda: array(b"", "|u1", [2**31, 2**31, 2**31]),
        lambda: array(b"x", "|u1", [-1]),
        lambda: array(b"12345678", "|O", [1]),
        lambda: array(b"12345678", "<M8[s]", [1]),
        lambda: array(b"12345678", "<c8", [1]),
        lambda: array(b"12345678", ["<f4"], [2]),
        lambda: array(b"12345678", "<f4", 2),
        lambda: array(b"", "<f4", [1] * 60),
        lambda: {b"__npgeneric__": True, b"data": 1e400, b"dtype": "<i4"},
        lambda: {b"__npgeneric__": True, b"data": [], b"dtype": "<f4"},
        lambda: {"__image__": True, "format": np.arange(3), "data": b"x"},
        lambda: {"__image__": True, "format": "png", "data": bomb()},
        lambda: {"__image__": True, "format": "jpeg", "data": picture_bytes(FRONT, "JPEG")[: int(draws.integers(700))]},
        lambda: {"__image__": True, "format": "png", "data": mutated(draws, picture_bytes(FRONT), b"")},
    ]
    return values[draws.integers(len(values))]()


def bomb() -> bytes:
    """A PNG of 65535 x 65535 pixels, by what its head says."""
    data = bytearray(picture_bytes(FRONT))
    data[16:24] = struct.pack("!II", 65535, 65535)
    return bytes(data)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every map and list within, with each of its keys."""
    keys: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = list(range(min(4, len(value))))
    for key in keys:
        yield value, key
        yield from places(value[key])


def reshaped(draws: np.random.Generator, message: dict[str, Any], make: Callable[[], Any]) -> dict[str, Any]:
    """A message with one to three values, keys or types of others."""
    message = copy.deepcopy(message)
    for _ in range(int(draws.integers(1, 4))):
        found = list(places(message))
        if not found:
            break
        within, key = found[draws.integers(len(found))]
        how = draws.random()
        if how < 0.7 or isinstance(within, list):
            within[key] = make()
        elif how < 0.8:
            del within[key]
        elif how < 0.9:
            within[_NAMES[draws.integers(len(_NAMES))]] = make()
        else:
            within[_NAMES[draws.integers(len(_NAMES))]] = within.pop(key)
    return message


_NAMES = (
    *("obs", "cameras", "images", "state", "states", "prompt", "task", "reset", "seed", "execution_step", "executed"),
    *("state_zeropadding", "num_inference_steps", "ndim_action", "explore_config", "value", "imagine", "batching"),
    *("deadline_ms", "compute_kv_cache", "type", "payload", "protocol_version", "error", "__ndarray__", "x" * 300, ""),
)


def packed(message: Any) -> bytes:
    """Bytes of a message, whatever it holds."""

    def encode(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            return array(item.tobytes(), item.dtype.str, list(item.shape))
        return {b"__npgeneric__": True, b"data": item.item(), b"dtype": item.dtype.str}

    try:
        data: bytes = msgpack.packb(message, default=encode)
    except (ValueError, OverflowError):  # nested too deeply to be packed
        data = b"\x81\xa3obs" + b"\x91" * 2000 + b"\xc0"
    return data


def bombs(draws: np.random.Generator) -> bytes:
    """Small messages that mean much."""
    made: list[Callable[[], bytes]] = [
        lambda: b"\x91" * int(draws.integers(1, 3000)) + b"\xc0",
        lambda: b"\x81\xa1a" * int(draws.integers(1, 3000)) + b"\xc0",
        lambda: b"\xdd\xff\xff\xff\xff",
        lambda: b"\xdf\x7f\xff\xff\xff",
        lambda: b"\xc6\xff\xff\xff\xff",
        lambda: b"\xdc\x10\x00" + (b"\xdc\x00\xff" + b"\x90" * 255) * 4096,
        lambda: b"\xdc\x10\x00" + b"\x80" * 4096,
        lambda: b"\x81\xa1a\xdd\x00\x0f\xff\xff" + b"\x90" * 0xFFFFF,
        lambda: packed({f"k{i}": i for i in range(int(draws.integers(5, 400)))}),
        lambda: packed({"obs": ROWS[0], "state": [0.0] * 4000, "prompt": "go"}),
        lambda: packed({"cameras": nested(400), "obs": ROWS[0]}),
        lambda: packed({"prompt": "y" * BIG, "obs": ROWS[0]}),
        lambda: b"\xc1" * int(draws.integers(1, 50)),
        lambda: b"\xd4\x01\x00" + b"\xc7\x05\x01hello",
        lambda: b"",
        lambda: draws.bytes(int(draws.integers(1, 2000))),
        lambda: packed(observation(0, prompt="\u00e9" * int(draws.integers(4000, 5000)))),
        lambda: packed(observation(0, execution_step=-5)),
        lambda: packed(observation(0, num_inference_steps=10**6)),
        lambda: packed(observation(0, explore_config={"explore_steps": 20, "dynamic_groups": 64, "value_groups": 32})),
    ]
    return made[draws.integers(len(made))]()


# What is done with them.


def openpi_bytes(draws: np.random.Generator) -> Attempt:
    data = mutated(draws, packed(valid(draws)), packed(valid(draws)))
    return Attempt(kind="openpi, bytes", target="openpi", pieces=(data,))


def openpi_values(draws: np.random.Generator) -> Attempt:
    data = packed(reshaped(draws, valid(draws), lambda: wrong(draws)))
    return Attempt(kind="openpi, values", target="openpi", pieces=(data,))


def openpi_bomb(draws: np.random.Generator) -> Attempt:
    return Attempt(kind="openpi, bomb", target="openpi", pieces=(bombs(draws),))


def openpi_early(draws: np.random.Generator) -> Attempt:
    """Several requests at once."""
    pieces = tuple(packed(valid(draws)) for _ in range(int(draws.integers(2, 8))))
    return Attempt(kind="openpi, at once", target="openpi", pieces=pieces)


def vla_bytes(draws: np.random.Generator) -> Attempt:
    data = mutated(draws, packed(valid_frame(draws)), packed(valid_frame(draws)))
    return Attempt(kind="vla-eval, bytes", target="vla-eval", pieces=(data,))


def vla_values(draws: np.random.Generator) -> Attempt:
    data = packed(reshaped(draws, valid_frame(draws), lambda: wrong(draws)))
    return Attempt(kind="vla-eval, values", target="vla-eval", pieces=(data,))


def vla_bomb(draws: np.random.Generator) -> Attempt:
    return Attempt(kind="vla-eval, bomb", target="vla-eval", pieces=(bombs(draws),))


def framing(draws: np.random.Generator) -> Attempt:
    """WebSocket frames that are none, or that come in strange ways."""
    data = pack(observation(0, executed=EXECUTED))
    cut = int(draws.integers(1, len(data)))
    small = draws.bytes(int(draws.integers(0, 60)))
    made: dict[str, Callable[[], list[bytes]]] = {
        "reserved bits": lambda: [bytes([0xF2]) + frame(small)[1:]],
        "opcode": lambda: [frame(small, opcode=int(draws.integers(3, 8)))],
        "no mask": lambda: [frame(small, mask=False)],
        "length": lambda: [frame(small, length=int(draws.choice([1 << 20, 1 << 30, 1 << 62, 1 << 63])))],
        "long ping": lambda: [frame(bytes(int(draws.integers(126, 300))), opcode=9)],
        "cut ping": lambda: [frame(small, opcode=9, fin=False)],
        "text": lambda: [frame(b"reset", opcode=1)],
        "text that is none": lambda: [frame(b"\xff\xfe" + small, opcode=1)],
        "text that is none, then close": lambda: [frame(b"\xff" + small, opcode=1) + frame(b"\x03\xe8", opcode=8)],
        "goes on without a beginning": lambda: [frame(small, opcode=0)],
        "begins twice": lambda: [frame(small, fin=False) + frame(small)],
        "one-byte fragments": lambda: [fragments(data[:3000], 1)],
        "empty fragments": lambda: [frame(data[:9], fin=False) + frame(b"", opcode=0, fin=False) * 5000],
        "fragments of text": lambda: [frame(b"\xff", opcode=1, fin=False) + frame(b"\xfe", opcode=0)],
        "pings": lambda: [frame(b"p" * 100, opcode=9) * int(draws.integers(1, 3000))],
        "ping within": lambda: [frame(data[:9], fin=False) + frame(b"p", opcode=9) + frame(data[9:], opcode=0)],
        "pongs": lambda: [frame(b"p" * 100, opcode=10) * 1000],
        "close code": lambda: [frame(struct.pack("!H", int(draws.integers(0, 65536))) + small, opcode=8)],
        "close of one byte": lambda: [frame(b"\x03", opcode=8)],
        "close within": lambda: [frame(data[:cut], fin=False) + frame(b"\x03\xe8", opcode=8)],
        "close, then more": lambda: [frame(b"\x03\xe8", opcode=8) + frame(data) * 3],
        "cut": lambda: [frame(data)[:cut]],
        "very many at once": lambda: [frame(b"\xc0") * 500],
        "flips": lambda: [mutated(draws, frame(data), frame(small))],
        "in two pieces": lambda: [frame(data)[:cut], frame(data)[cut:]],
        "noise": lambda: [draws.bytes(int(draws.integers(1, 500)))],
    }
    name = list(made)[draws.integers(len(made))]
    path = ("/", "/?errors=reply", "/vla-eval")[draws.integers(3)]
    return Attempt(
        kind=f"framing, {name}",
        target=f"raw {path}",
        pieces=tuple(made[name]()),
        is_owed=False,
        leaves=draws.random() < 0.3,
    )


def fragments(data: bytes, size: int) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    last = len(parts) - 1
    return b"".join(frame(part, opcode=0 if at else 2, fin=at == last) for at, part in enumerate(parts))


def abrupt(draws: np.random.Generator) -> Attempt:
    """A valid request whose robot is gone before its answer."""
    path, data = ("/", packed(valid(draws))) if draws.random() < 0.6 else ("/vla-eval", packed(valid_frame(draws)))
    pieces = (frame(data) * int(draws.integers(1, 4)),)
    return Attempt(kind="gone before the answer", target=f"raw {path}", pieces=pieces, is_owed=False, leaves=True)


def opening(draws: np.random.Generator) -> Attempt:
    """Handshakes that are none."""
    good = handshake("/")
    made: dict[str, bytes] = {
        "many headers": handshake("/", *[f"a{i}: b" for i in range(200)]),
        "long header": handshake("/", "a: " + "b" * 9000),
        "longer header": handshake("/", "a: " + "b" * 20000),
        "long path": handshake("/" + "a" * 9000),
        "method": handshake("/", method="POST"),
        "path": handshake("/nowhere/%ff%00?errors=%zz"),
        "two keys": handshake("/", "Sec-WebSocket-Key: x"),
        "extensions": handshake("/", "Sec-WebSocket-Extensions: permessage-deflate; x=\x01"),
        "subprotocol": handshake("/", "Sec-WebSocket-Protocol: ,,;"),
        "origin": handshake("/", "Origin: http://[::1"),
        "origins": handshake("/", "Origin: http://x", "Origin: http://y"),
        "bytes": handshake("/", "x: \xff\xfe"),
        "flips": mutated(draws, good, good),
        "and noise": good + draws.bytes(100),
    }
    name = list(made)[draws.integers(len(made))]
    return Attempt(kind=f"handshake, {name}", target="tcp", pieces=(made[name],), is_owed=False)


def predict(draws: np.random.Generator) -> Attempt:
    told = {"instruction": "go", "execution_step": int(draws.integers(1, 6))}
    if draws.random() < 0.3:
        told = reshaped(draws, told, lambda: _plain(wrong(draws)))
    state = observation(0)["state"].astype("<f4").tobytes()
    parts = {"front": FRONT.tobytes(), "wrist": WRIST.tobytes(), "state": state, "json": _json(told)}
    how = draws.random()
    if how < 0.3:
        name = list(parts)[draws.integers(4)]
        parts[name] = mutated(draws, parts[name], parts["json"])
    elif how < 0.4:
        parts |= {f"more{i}": b"x" for i in range(int(draws.integers(1, 100)))}
    elif how < 0.5:
        del parts[list(parts)[draws.integers(4)]]
    body, kind = form(parts)
    if draws.random() < 0.5:
        body = mutated(draws, body, body)
    if draws.random() < 0.1:
        kind = ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-datax; boundary=b")[
            draws.integers(3)
        ]
    return posted(draws, "/predict", body, kind)


def act(draws: np.random.Generator) -> Attempt:
    message = valid_json(draws)
    how = draws.random()
    if how < 0.5:
        body = _json(reshaped(draws, message, lambda: _plain(wrong(draws))))
    elif how < 0.8:
        body = mutated(draws, _json(message), _json(valid_json(draws)))
    else:
        body = [
            b"[" * 200000,
            b'{"a":' * 50000,
            b'{"state": [' + b"9" * 4000 + b', 0, 0], "obs": 0, "prompt": "go"}',
            b'{"state": ' + b"9" * 5000 + b"}",
            _json({"obs": ["x" * 20000] + [""] * 20000}),
            _json({"images": {"front": [[10**400]], "wrist": [["a"]]}}),
            _json({"obs": [[1, 2], [3]], "state": [1]}),
            _json({"encoded": "[" * 5000}),
            _json({"obs": {"__numpy__": "!!!!", "dtype": "|u1", "shape": [1]}}),
            _json({"obs": [[]] * 100000}),
            _json({"state": [float("nan")] * 3, "obs": ROWS[0].tolist(), "prompt": "go"}),
            b"\xff\xfe{}",
            b"",
            b"null",
        ][draws.integers(14)]
    return posted(draws, "/act", body, "application/json")


def posted(draws: np.random.Generator, path: str, body: bytes, kind: str) -> Attempt:
    """A body on its way: whole, too long or short for its head, cut, or in chunks that are none."""
    names = [f"X-Session: s{draws.integers(8)}"] if draws.random() < 0.7 else ["X-Session: \xff" * 3]
    how = draws.random()
    if how < 0.85:
        return Attempt(kind=path[1:], target="tcp", pieces=(http(path, body, kind, *names),))
    if how < 0.9:
        data = http(path, body, kind, *names, length=len(body) + int(draws.integers(1, 99)))
        return Attempt(kind=f"{path[1:]}, cut", target="tcp", pieces=(data,), is_owed=False, leaves=True)
    if how < 0.95:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n"
        data = head.encode() + mutated(draws, chunk, chunk) + b"0\r\n\r\n"
        return Attempt(kind=f"{path[1:]}, chunks", target="tcp", pieces=(data,), is_owed=False)
    data = http(path, body, kind, length=1 << int(draws.integers(20, 63)))
    return Attempt(kind=f"{path[1:]}, length", target="tcp", pieces=(data,), is_owed=False)


def requests(draws: np.random.Generator) -> Attempt:
    """HTTP that is none, or nobody's."""
    get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    paths = (
        "/live?session=%00%ff",
        "/page/../x",
        "/page/live.js",
        "/config?x=1",
        "/metrics",
        "/health",
        "/reset",
        "//",
    )
    path = paths[draws.integers(len(paths))]
    method = ("PUT", "HEAD", "CONNECT", "X")[draws.integers(4)]
    made: dict[str, bytes] = {
        "path": f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(),
        "method": f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        "body that nobody reads": get + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "chunks, then noise": get + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\nx" + draws.bytes(40),
        "pipelined": (get + b"\r\n") * int(draws.integers(2, 60)),
        "pipelined, then noise": (get + b"\r\n") * 3 + draws.bytes(40) + b"\r\n\r\n",
        "version": b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
        "preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "no host": b"GET / HTTP/1.1\r\n\r\n",
        "two lengths": get + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "length of many digits": get + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
        "length and chunks": get + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "long head": get + b"a: " + b"b" * 40000,
        "expect": b"POST /act HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        "flips": mutated(draws, get + b"\r\n", get),
        "noise": draws.bytes(int(draws.integers(1, 300))),
        "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draws.bytes(300),
        "nothing": b"",
        "lines": b"\r\n" * 2000,
    }
    name = list(made)[draws.integers(len(made))]
    leaves = bool(draws.random() < 0.3)
    return Attempt(kind=f"http, {name}", target="tcp", pieces=(made[name],), is_owed=False, leaves=leaves)


def _json(message: Any) -> bytes:
    return json.dumps(message, default=lambda item: item.tolist() if hasattr(item, "tolist") else f"{item!r}").encode()


def _plain(value: Any) -> Any:
    """A value that JSON can hold."""
    if isinstance(value, dict):
        return {f"{key}": _plain(item) for key, item in value.items()}
    return value


MAKERS: tuple[tuple[float, Callable[[np.random.Generator], Attempt]], ...] = (
    (4, openpi_bytes),
    (5, openpi_values),
    (1, openpi_bomb),
    (0.5, openpi_early),
    (3, vla_bytes),
    (3, vla_values),
    (0.7, vla_bomb),
    (2.5, framing),
    (1, abrupt),
    (0.7, opening),
    (1, predict),
    (1, act),
    (1.5, requests),
)
