"""HTTP on the same port: WAV's form byte for byte, JSON, sessions, and errors with their status."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from wamkit.data.synthetic import synthetic_robot
from wamkit.serving.http import Part, default_parts
from wamkit.serving.server import Server

from ..policies import CONFIG, EPISODE, make_policy
from .conftest import TASK, alone, observation, serving
from .test_server import slow

FRONT, WRIST = observation()["obs"]
PARTS = {
    "front": FRONT.tobytes(),
    "wrist": WRIST.tobytes(),
    "state": EPISODE.state[0].astype("<f4").tobytes(),
    "json": json.dumps({"instruction": TASK}).encode(),
}


def form(parts: dict[str, bytes], boundary: str = "b0undary") -> tuple[bytes, str]:
    """A body as WAV's robot sends it: files without a type of their own."""
    lines = []
    for name, data in parts.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'
        lines.append(head.encode() + data + b"\r\n")
    return b"".join(lines) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def post(server: Server, path: str, body: bytes, kind: str = "", **headers: str) -> tuple[int, bytes, Any]:
    request = urllib.request.Request(server.address + path, data=body, method="POST", headers=headers)
    if kind:
        request.add_header("Content-Type", kind)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def predict(server: Server, session: str, **changes: bytes) -> tuple[int, bytes, Any]:
    body, kind = form({**PARTS, **changes})
    return post(server, "/predict", body, kind, **{"X-Session": session})


def act(server: Server, message: Any, session: str = "act") -> tuple[int, Any]:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    status, answer, _ = post(server, "/act", body, "application/json", **{"X-Session": session})
    return status, json.loads(answer)


def array(value: np.ndarray) -> dict[str, Any]:
    return {
        "__numpy__": base64.b64encode(value.tobytes()).decode(),
        "dtype": value.dtype.str,
        "shape": list(value.shape),
    }


@pytest.fixture(scope="module")
def wav_robot() -> Iterator[Server]:
    """A server whose form has other sizes than the cameras, as WAV's robot sends them."""
    parts = (
        Part(name="front_head", camera="front", height=60, width=106),
        Part(name="left_hand", camera="wrist", height=32, width=32),
    )
    with serving(parts=parts) as running:
        yield running


def test_a_form_gets_the_chunk_in_plain_floats(server: Server) -> None:
    seeded = json.dumps({"instruction": TASK, "reset": True, "seed": 4}).encode()
    status, body, headers = predict(server, "one", json=seeded)
    shape = (CONFIG.action_horizon, 3)
    assert (status, headers["Content-Type"], headers["X-Action-Shape"]) == (200, "application/octet-stream", "9,3")
    assert len(body) == 4 * shape[0] * shape[1]
    first, second = alone([0, 4], seed=4, executed=4)
    assert np.array_equal(np.frombuffer(body, "<f4").reshape(shape), first)
    row = {"front": observation(4)["obs"][0].tobytes(), "wrist": observation(4)["obs"][1].tobytes()}
    _, body, _ = predict(server, "one", **row, state=EPISODE.state[4].astype("<f4").tobytes())
    assert np.array_equal(np.frombuffer(body, "<f4").reshape(shape), second)


def test_images_of_the_robots_size_are_resized_as_in_training(wav_robot: Server) -> None:
    from wamkit.data.images import fit_images

    large = np.random.default_rng(0).integers(0, 256, (60, 106, 3), np.uint8)
    parts = {"front_head": large.tobytes(), "left_hand": WRIST.tobytes(), "state": PARTS["state"]}
    body, kind = form({**parts, "json": json.dumps({"instruction": TASK, "reset": True, "seed": 4}).encode()})
    status, answer, _ = post(wav_robot, "/predict", body, kind)
    assert status == 200
    import torch

    front = fit_images(torch.from_numpy(large[None]), height=32, width=32, preprocess="resize")[0]
    policy = make_policy()
    policy.reset([0], seeds=[4])
    video = torch.stack([front, torch.from_numpy(WRIST)])[None]
    state = torch.from_numpy(EPISODE.state[:1])
    wanted = policy.act([0], video=video, state=state, task=[TASK], executed=[0]).actions[0].numpy()
    assert np.array_equal(np.frombuffer(answer, "<f4").reshape(wanted.shape), wanted)


def test_a_last_byte_that_is_missing_is_repeated(server: Server) -> None:
    once = FRONT.copy()
    once[-1, -1, -1] = once[-1, -1, -2]
    seeded = json.dumps({"instruction": f"<reset>{TASK}", "seed": 1}).encode()
    whole = predict(server, "cut", json=seeded, front=once.tobytes())
    cut = predict(server, "cut", json=seeded, front=once.tobytes()[:-1])
    assert whole[0] == cut[0] == 200 and whole[1] == cut[1]


def test_wavs_parts_are_expected_of_three_cameras() -> None:
    import dataclasses

    robot = synthetic_robot(height=256, width=256, cameras=("top_head", "hand_left", "hand_right"))
    parts = default_parts(dataclasses.replace(make_policy().spec, robot=robot))
    assert [(part.name, part.camera, part.height, part.width) for part in parts] == [
        ("front_head", "top_head", 240, 424),
        ("left_hand", "hand_left", 240, 320),
        ("right_hand", "hand_right", 240, 320),
    ]
    told = r"one part of /predict's form for each of the cameras \['front', 'wrist'\]"
    with pytest.raises(ValueError, match=told), serving(parts=parts):
        pass


def test_reset_begins_an_episode(server: Server) -> None:
    seeded = json.dumps({"instruction": f"<reset>{TASK}", "seed": 4}).encode()
    first = predict(server, "resets", json=seeded)[1]
    assert predict(server, "resets")[1] != first
    assert post(server, "/reset", b"", **{"X-Session": "resets"})[:2] == (200, b"Reset OK\n")
    assert predict(server, "resets")[0] == 200


@pytest.mark.parametrize("form_of", ["lists", "json-numpy", "encoded"])
def test_json_in_and_out(server: Server, form_of: str) -> None:
    message: dict[str, Any] = {"reset": True, "seed": 4, "instruction": TASK, "unnorm_key": "bridge", "executed": 4}
    if form_of == "lists":
        message |= {"images": {"front": FRONT.tolist(), "wrist": WRIST.tolist()}, "state": EPISODE.state[0].tolist()}
    else:
        message |= {"front": array(FRONT), "wrist": array(WRIST), "state": array(EPISODE.state[0])}
    if form_of == "encoded":
        message = {"encoded": json.dumps(message)}
    status, reply = act(server, message)
    assert status == 200 and reply["chunk_id"] >= 1 and reply["server_timing"]["infer_ms"] > 0
    assert np.array_equal(np.array(reply["actions"], np.float32), alone([0], seed=4, executed=4)[0])


def test_sessions_are_kept_apart(server: Server) -> None:
    chunks: dict[str, list[bytes]] = {"a": [], "b": []}
    for call, row in enumerate((0, 4)):
        for seed, name in enumerate(chunks):
            told = {"instruction": f"<reset>{TASK}", "seed": seed} if call == 0 else {"instruction": TASK}
            frames = {"front": observation(row)["obs"][0].tobytes(), "wrist": observation(row)["obs"][1].tobytes()}
            state = EPISODE.state[row].astype("<f4").tobytes()
            chunks[name].append(predict(server, name, json=json.dumps(told).encode(), state=state, **frames)[1])
    for seed, name in enumerate(chunks):
        wanted = [chunk.astype("<f4").tobytes() for chunk in alone([0, 4], seed=seed, executed=4)]
        assert chunks[name] == wanted


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"front": b"\0" * 100}, "expected 3072 bytes as 'front', got 100"),
        ({"state": b"\0" * 56}, "expected 12 bytes as 'state', got 56"),
        ({"state": np.full(3, np.nan, "<f4").tobytes()}, "NaN or infinity"),
        ({"json": b"{"}, "expected a JSON object, got none"),
        ({"json": b"[1]"}, "expected a JSON object, got list"),
        ({"json": b'{"instruction": 5}'}, "'instruction' as text"),
        ({"json": b'{"instruction": "go", "execution_step": -3}'}, "execution_step"),
        ({"left_hand": b""}, "['left_hand'] unknown"),
    ],
)
def test_forms_that_do_not_fit_are_told(server: Server, changes: dict[str, bytes], told: str) -> None:
    status, body, _ = predict(server, "wrong", **changes)
    answer = json.loads(body)
    assert status == 400 and told in answer["error"] and answer["kind"] == "bad_request"


def test_a_form_that_is_only_to_be_remembered_gets_no_actions(server: Server) -> None:
    told = {"instruction": TASK, "compute_kv_cache": True}
    status, body, headers = predict(server, "remembers", json=json.dumps(told).encode())
    assert (status, body, headers["X-Action-Shape"]) == (200, b"", "0,3")


def test_large_parts_are_not_written_to_disk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    status, body, _ = predict(server, "large", front=bytes(1_050_000))
    assert status == 400 and "expected 3072 bytes as 'front', got 1050000" in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        (b"", "", "expected multipart/form-data"),
        (b"{}", "application/json", "expected multipart/form-data with the files"),
        (b"nothing", "multipart/form-data; boundary=x", "expected"),
        (b"nothing", "multipart/form-data", "expected"),
        (form({"front": b""})[0], "multipart/form-data; boundary=b0undary", "['wrist', 'state', 'json'] not found"),
    ],
)
def test_bodies_that_are_no_form_are_told(server: Server, body: bytes, kind: str, told: str) -> None:
    status, answer, _ = post(server, "/predict", body, kind)
    assert status == 400 and told in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"\xff\xfe", "expected a JSON object"),
        (b"[" * 100_000, "expected a JSON object"),
        (b"[]", "expected a JSON object, got list"),
        (b'{"state": [' + b"[]," * 80_000 + b"0]}", "at most 73984 lists and objects"),
        ({"images": {"front": [[1, 2], [3]], "wrist": []}, "state": [0, 0, 0]}, "equally long rows"),
        (
            {"front": FRONT.astype(int).tolist(), "wrist": (WRIST.astype(int) + 300).tolist(), "state": [0, 0, 0]},
            "camera 'wrist'",
        ),
        ({"front": ["x" * 20_000] + [""] * 20_000}, "numbers"),  # 2 GB, were it an array of texts
        ({"front": [[10**400]]}, "numbers"),
        ({"front": FRONT.tolist(), "wrist": WRIST.tolist(), "state": [10**400, 0, 0]}, "'state' of finite numbers"),
        ({"front": {"__numpy__": "!!", "dtype": "|u1", "shape": [1]}}, "base64"),
        ({"front": {"__numpy__": "AAAA", "dtype": "|O", "shape": [3]}}, "dtype"),
        ({"front": {"__numpy__": "AAAA", "dtype": "|u1", "shape": [4]}}, "expected 4 bytes"),
        ({"encoded": "{"}, "expected a JSON object"),
        ({"instruction": "go"}, "no image of any camera came"),
    ],
)
def test_json_that_does_not_fit_is_told(server: Server, message: Any, told: str) -> None:
    status, answer = act(server, message, "wrong")
    assert status == 400 and told in answer["error"] and "Traceback" not in answer["error"]


def test_a_session_that_rests_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(name: str) -> tuple[int, Any]:
        status, body, headers = post(server, "/reset", b"", **{"X-Session": name})
        return status, headers["Retry-After"] or body

    with serving(max_connections=2) as server:
        assert [reset(name)[0] for name in ("a", "b", "a")] == [200, 200, 200]
        status, after = reset("c")
        assert status == 503 and 28 <= int(after) <= 30
        monkeypatch.setattr("wamkit.serving.http.REST_S", 0.05)
        time.sleep(0.1)
        assert reset("c")[0] == 200
        assert sorted(session.peer for session in server.app.service.sessions) == ["127.0.0.1/a", "127.0.0.1/c"]


def test_a_session_at_work_makes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wamkit.serving.http.REST_S", 0.05)
    with serving(slow(1.0), max_connections=1) as server:
        status: list[int] = []
        robot = threading.Thread(target=lambda: status.append(predict(server, "a")[0]))
        robot.start()
        time.sleep(0.4)
        assert post(server, "/reset", b"", **{"X-Session": "b"})[0] == 503
        robot.join()
        assert status == [200]


def test_a_refusal_is_one_line_of_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="wamkit.serving.http")
    assert act(server, {"reset": True, "a\nb\x1b[2J": 1})[0] == predict(server, "log", front=b"")[0] == 400
    lines = [record.getMessage() for record in caplog.records if record.name == "wamkit.serving.http"]
    assert [line.split(": expected")[0] for line in lines] == [
        "/act of 127.0.0.1: bad_request",
        "/predict of 127.0.0.1: bad_request",
    ]
    assert "".join(lines).isprintable()


def test_a_session_is_named_in_plain_words(server: Server) -> None:
    status, answer = act(server, {"reset": True}, "a b")
    assert status == 400 and "X-Session" in answer["error"]


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/nothing", "GET", 404), ("/act", "GET", 405), ("/page/..%2fapp.py", "GET", 404)]
)
def test_other_paths_are_not_there(server: Server, path: str, method: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(server.address + path, method=method), timeout=10)
    told = json.loads(error.value.read())
    assert error.value.code == status and told["error"].startswith("expected ")
    assert told["kind"] == {404: "not_found", 405: "method_not_allowed"}[status]


def test_health_config_and_metrics(server: Server) -> None:
    def get(path: str) -> bytes:
        with urllib.request.urlopen(server.address + path, timeout=10) as answer:
            return answer.read()

    assert get("/healthz") == b"OK\n" and json.loads(get("/health")) == {"status": "ok"}
    assert json.loads(get("/config"))["config"] == {"max_batch_size": 8, "max_wait_time": 0.002}
    assert "not changed" in json.loads(get("/config?max_batch_size=1"))["errors"][0]
    assert act(server, {"reset": True}, "counted")[0] == 200
    text = get("/metrics").decode()
    assert 'wamkit_requests_total{dialect="http",outcome="ok"}' in text and "wamkit_batch_size_bucket" in text
