"""What the live page is told: robots, latencies, observations, and what is imagined only for those who look."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from wamkit_client import BadRequest, Client

from wamkit.policy import Policy
from wamkit.serving.inference import Answer, Call
from wamkit.serving.live import NUM_REFUSALS, NUM_SCORES, LiveView, picture
from wamkit.serving.requests import Settings
from wamkit.serving.server import Server
from wamkit.types import Imagined

from ..policies import CONFIG, EPISODE, PLANNER, VIDEO, make_policy
from .conftest import TASK, alone, named, serving

OFTEN = 1e-9  # seconds: imagine at every call


class Dreamer(Policy):
    """The policy, which counts what it imagines beside its answers, and decides and imagines when it is let."""

    decides: threading.Event
    gate: threading.Event
    dreams: int

    def decide(self, slots: Any, **inputs: Any) -> Any:
        self.decides.wait()
        decision = super().decide(slots, **inputs)

        def imagine() -> Imagined:
            self.gate.wait()
            self.dreams += 1
            if self.dreams == 1 and "break" in inputs["task"]:
                raise RuntimeError("out of memory")
            return decision.imagine()

        return dataclasses.replace(decision, imagine=imagine)

    def varied(self, **settings: Any) -> Dreamer:
        return self  # one object sees every call


def dreamer(planner: Any = None) -> Dreamer:
    policy = make_policy(planner)
    policy.__class__ = Dreamer
    assert isinstance(policy, Dreamer)
    policy.decides, policy.gate, policy.dreams = threading.Event(), threading.Event(), 0
    policy.decides.set()
    policy.gate.set()
    return policy


def get(server: Server, path: str, **headers: str) -> tuple[int, bytes, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(server.address + path, headers=headers), timeout=30) as told:
            return told.status, told.read(), told.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def look(server: Server, **query: Any) -> Any:
    status, body, headers = get(server, "/live?" + urllib.parse.urlencode(query))
    assert status == 200 and headers["Cache-Control"] == "no-store"

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON: browsers cannot read it")

    return json.loads(body, parse_constant=refuse)


def until(found: Callable[[], Any]) -> Any:
    """What comes in a moment."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.01)
    pytest.fail("it never came")


def is_rested(server: Server) -> bool:
    """Whether somebody looks at a robot whose next call will be imagined at."""
    return any(server.app.live.wants(slot) for slot in list(server.app.live._robots))


@contextlib.contextmanager
def watching(server: Server) -> Iterator[None]:
    """Somebody who looks all the time."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.05):
            look(server)

    look(server)
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def pixels(address: str) -> np.ndarray:
    head, _, data = address.partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def names(state: Any) -> list[str]:
    return [session["name"] for session in state["sessions"]]


def test_before_any_robot_came() -> None:
    with serving() as fresh:
        state = look(fresh)
    assert (state["policy"], state["family"], state["robot"]) == ("tiny", "wav", make_policy().spec.robot.name)
    assert state["sessions"] == [] and state["shown"] is None and state["latency_ms"] is None
    assert state["planner"] is None and state["waiting"] == 0 and 0 < state["uptime_s"] < 600


def test_a_robot_is_told_from_when_it_connects_to_when_it_leaves() -> None:
    with serving() as server:
        with Client(server.url):
            state = look(server)
            (row,) = state["sessions"]
            assert row["peer"].startswith("127.0.0.1:") and row["task"] == "" and row["idle_s"] is None
            assert (row["episodes"], row["calls"], row["latency_ms"]) == (0, 0, None)
            assert state["shown"]["name"] == row["name"] and state["shown"]["observation"] is None
        assert until(lambda: look(server)["shown"] is None) and look(server)["sessions"] == []


def test_what_a_robot_did_last() -> None:
    with serving() as server, Client(server.url) as client:
        for _ in range(2):
            client.reset(TASK, seed=1)
            for row in (0, 4, 8):
                reply = client.infer(named(row, executed=4))
        state = look(server)
    shown, robot = state["shown"], make_policy().spec.robot
    (row,) = state["sessions"]
    assert (row["episodes"], row["calls"], row["steps"], row["task"]) == (2, 6, 8, TASK)
    assert 0 < row["latency_ms"]["median"] <= row["latency_ms"]["p95"] and 0 <= row["idle_s"] < 60
    assert len(shown["latencies_ms"]) == 6 and all(whole >= policy > 0 for whole, policy in shown["latencies_ms"])
    assert row["latency_ms"]["median"] == pytest.approx(np.median([whole for whole, _ in shown["latencies_ms"]]), 1e-4)
    assert state["latency_ms"] == row["latency_ms"]
    assert set(shown["timing_ms"]) == {"wait", "encode", "plan", "act"} and shown["batch_size"] == 1

    assert list(shown["observation"]) == list(robot.camera_names)
    for address, frame, other in zip(
        shown["observation"].values(), VIDEO[8].numpy(), VIDEO[8].numpy()[::-1], strict=True
    ):
        assert np.abs(pixels(address) - frame).mean() < 6 < np.abs(pixels(address) - other).mean()  # JPEG
    assert [name for name, _, _ in shown["state"]] == [channel.name for channel in robot.state]
    assert [value for _, _, value in shown["state"]] == pytest.approx(EPISODE.state[8], rel=1e-5)
    assert np.allclose(shown["actions"], reply["actions"], rtol=1e-5, atol=0)
    assert shown["action_names"] == [channel.name for channel in robot.action]
    assert (state["action_horizon"], state["execution_horizon"]) == (CONFIG.action_horizon, 4)


def test_the_chosen_robot_is_shown_else_the_one_that_acted_last() -> None:
    with serving() as server, Client(server.url) as first:
        first.infer(named())
        with Client(server.url) as second, Client(server.url):
            second.infer(named(3))
            state = look(server)
            one, two, idle = names(state)  # in the order they came
            assert state["shown"]["name"] == two
            assert [look(server, session=name)["shown"]["name"] for name in (one, two, idle)] == [one, two, idle]
            assert look(server, session="<b>")["shown"]["name"] == two
        assert until(lambda: len(look(server)["sessions"]) == 1)
        assert look(server, session=two)["shown"]["name"] == one


@pytest.mark.parametrize(
    ("size", "wanted"), [((480, 640), (480, 640)), ((1080, 1920), (360, 640)), ((48, 64), (48, 64))]
)
def test_large_pictures_are_made_smaller(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    frame = np.full((*size, 3), (10, 100, 200), np.uint8)
    shown = pixels(picture(frame))
    assert shown.shape == (*wanted, 3) and np.abs(shown - frame[0, 0]).max() < 8


def test_pictures_that_the_page_has_are_not_sent_again() -> None:
    with serving(imagine_every_s=OFTEN) as server, Client(server.url) as client:
        look(server)
        client.infer(named())
        film = until(lambda: look(server)["shown"]["film"])
        (name,) = names(look(server))
        assert film["call"] == 1 and film["frames"] is not None
        again = look(server, session=name, observed=1, film=1)["shown"]
        assert again["observation"] is None and again["film"] == {**film, "frames": None}
        for query in (
            {"session": name, "observed": 0},
            {"session": "another", "observed": 1, "film": 1},
            {"film": "x"},
        ):
            shown = look(server, **query)["shown"]
            assert shown["observation"] is not None and shown["film"]["frames"] == film["frames"]


@pytest.mark.slow
@pytest.mark.parametrize("planner", [None, PLANNER], ids=["drawn", "planned"])
def test_looking_changes_no_action(planner: Any) -> None:
    policy = dreamer(planner)
    with serving(policy, imagine_every_s=OFTEN) as server, Client(server.url) as client, watching(server):
        client.reset(seed=5)
        chunks = []
        for row in (0, 4, 8):
            until(lambda: is_rested(server))
            chunks.append(client.infer(named(row, executed=4))["actions"])
            until(lambda: (look(server)["shown"]["film"] or {}).get("call") == len(chunks))
    for chunk, wanted in zip(chunks, alone([0, 4, 8], seed=5, executed=4, planner=planner), strict=True):
        assert np.array_equal(chunk, wanted)


def test_what_is_shown_is_what_the_policy_imagines() -> None:
    policy = make_policy(PLANNER)
    policy.reset([0], seeds=[5])
    state = torch.from_numpy(EPISODE.state[0][None])
    chunk = policy.act([0], video=VIDEO[0][None], state=state, task=[TASK], executed=[0], record=True)
    imagined = chunk.imagined
    assert imagined is not None and imagined.video is not None and imagined.scores is not None
    assert imagined.value is not None and imagined.video_steps is not None
    with serving(make_policy(PLANNER), imagine_every_s=OFTEN) as server, Client(server.url) as client:
        look(server)
        client.reset(seed=5)
        client.infer(named())
        until(lambda: look(server)["shown"]["film"])
        told = look(server)
    film, search, values = told["shown"]["film"], told["shown"]["search"], told["shown"]["values"]
    assert told["planner"]["num_videos"] == 4
    assert (film["call"], search["call"], film["steps"]) == (1, 1, list(imagined.video_steps))
    assert list(film["frames"]) == list(policy.spec.robot.camera_names)
    for addresses, view in zip(film["frames"].values(), imagined.video[0].numpy(), strict=True):
        assert len(addresses) == len(view)
        assert all(np.abs(pixels(address) - frame).mean() < 6 for address, frame in zip(addresses, view, strict=True))
    assert search["value"] == pytest.approx(imagined.value[0].numpy(), rel=1e-4)
    assert values == [[0, pytest.approx(float(imagined.value[0, 0]), rel=1e-4)]]
    assert search["candidates"] == 8 and search["not_finite"] == 0
    assert np.allclose(search["scores"], np.sort(imagined.scores[0].numpy(), axis=1), rtol=1e-4)


def test_nothing_is_imagined_when_nobody_looks() -> None:
    policy = dreamer()
    with serving(policy, imagine_every_s=OFTEN) as server, Client(server.url) as client:
        for row in range(3):
            client.infer(named(row, executed=4))
        time.sleep(0.05)
        assert policy.dreams == 0
        assert look(server)["shown"]["film"] is None  # from now on somebody looks
        client.infer(named(3, executed=4))
        assert until(lambda: look(server)["shown"]["film"])["call"] == 4 and policy.dreams == 1
        server.app.live._robots[next(iter(server.app.live._robots))].looked -= 60  # who looked has left long ago
        client.infer(named(4, executed=4))
        client.infer(named(5, executed=4))
        assert policy.dreams == 1


@pytest.mark.parametrize(("interval", "dreams"), [(0.0, 0), (1000.0, 1)], ids=["never", "seldom"])
def test_imagining_is_not_done_oftener_than_allowed(interval: float, dreams: int) -> None:
    policy = dreamer()
    with serving(policy, imagine_every_s=interval) as server, Client(server.url) as client, watching(server):
        for row in range(4):
            client.infer(named(row, executed=4))
            until(lambda: policy.dreams == dreams)
        assert look(server)["imagine_every_s"] == interval
    assert policy.dreams == dreams  # the server has ended, and its thread with it


def test_the_robot_has_its_answer_before_anything_is_imagined() -> None:
    policy = dreamer()
    with serving(policy, imagine_every_s=OFTEN) as server, Client(server.url) as client:
        policy.gate.clear()
        look(server)
        try:
            assert client.infer(named())["actions"].shape == (CONFIG.action_horizon, 3)
            shown = until(lambda: look(server)["shown"])
            assert shown["calls"] == 1 and shown["film"] is None and policy.dreams == 0
        finally:
            policy.gate.set()
        assert until(lambda: look(server)["shown"]["film"])["call"] == 1


def test_the_future_is_imagined_though_another_robot_waits() -> None:
    policy = dreamer()
    with serving(policy, imagine_every_s=OFTEN) as server, Client(server.url) as first, Client(server.url) as second:
        watched = names(look(server))[0]
        look(server, session=watched)
        server.app.live._robots[max(server.app.live._robots)].looked -= 60  # nobody looks at the second
        policy.decides.clear()
        robots = [threading.Thread(target=client.infer, args=(named(),)) for client in (first, second)]
        inference = server.app.service.inference
        try:
            robots[0].start()
            until(lambda: inference._robots and inference.num_waiting == 0)  # its turn has begun
            robots[1].start()
            until(lambda: inference.num_waiting == 1)
        finally:
            policy.decides.set()
        for robot in robots:
            robot.join()
        assert policy.dreams == 1 and look(server, session=watched)["shown"]["film"]["call"] == 1


@pytest.mark.slow
def test_imagining_takes_a_small_share_of_the_time() -> None:
    policy = dreamer()
    with serving(policy, imagine_every_s=OFTEN) as server, Client(server.url) as client, watching(server):
        policy.gate.clear()
        client.infer(named())
        time.sleep(0.2)
        policy.gate.set()
        until(lambda: policy.dreams == 1)
        until(lambda: not is_rested(server))
        client.infer(named(1, executed=4))  # within 0.8 s
        assert policy.dreams == 1
        until(lambda: is_rested(server))
        client.infer(named(2, executed=4))
        until(lambda: policy.dreams == 2)


def test_each_of_two_pages_sees_its_robot_imagine() -> None:
    with serving(imagine_every_s=OFTEN) as server, Client(server.url) as first, Client(server.url) as second:
        pages = names(look(server))
        for page in pages:
            look(server, session=page)
        for client, page in ((first, pages[0]), (second, pages[1])):
            until(lambda: is_rested(server))
            client.infer(named())
            assert until(lambda page=page: look(server, session=page)["shown"]["film"])["call"] == 1


def test_a_failure_to_imagine_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    policy = dreamer()
    with serving(policy, imagine_every_s=OFTEN) as server, Client(server.url) as client, watching(server):
        client.infer(named(prompt="break"))
        until(lambda: "robots are served all the same" in caplog.text and is_rested(server))
        client.infer(named(1, executed=4))
        assert until(lambda: look(server)["shown"]["film"])["call"] == 2
        assert client.reconnects == 0


def test_values_that_robots_ask_for_are_shown_without_imagining() -> None:
    policy = dreamer(PLANNER)
    with serving(policy, values=True, imagine_every_s=0.0) as server, Client(server.url) as client:
        client.reset(TASK, seed=1)
        given = [float(client.infer(named(row, executed=row and 4))["value"][0]) for row in (0, 4, 8)]
        shown = look(server)["shown"]
        assert [step for step, _ in shown["values"]] == [0, 4, 8]
        assert [value for _, value in shown["values"]] == pytest.approx(given, rel=1e-4)
        assert shown["search"]["call"] == 3 and len(shown["search"]["scores"]) == 2 and shown["film"] is None
        client.reset(TASK)  # the curve is that of one episode
        shown = look(server)["shown"]
        assert shown["values"] == [] and shown["search"] is None and shown["episodes"] == 2 and shown["steps"] == 0
    assert policy.dreams == 0


def test_refused_requests_are_told_when_their_robot_is_gone_too() -> None:
    with serving() as server:
        assert look(server)["refused"] == []
        for width in range(4, 4 + NUM_REFUSALS + 1):
            with Client(server.url) as client, pytest.raises(BadRequest, match="expected a state of 3 numbers"):
                client.infer(named(state=np.zeros(width, np.float32)))
        until(lambda: not look(server)["sessions"])
        refused = look(server)["refused"]
    assert [each["session"] for each in refused] == [f"openpi-{number}" for number in (5, 4, 3, 2)]  # newest first
    assert all("expected a state of 3 numbers" in each["told"] and 0 <= each["ago_s"] < 60 for each in refused)
    assert refused[0]["peer"].startswith("127.0.0.1:")


def test_frames_that_a_robot_asks_for_are_shown_too() -> None:
    with serving(imagine_every_s=OFTEN) as server, Client(server.url) as client, watching(server):
        client.infer(named(imagine=True))
        shown = look(server)["shown"]
    assert shown["film"]["call"] == 1 and len(shown["film"]["frames"]) == 2 and len(shown["values"]) == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_reach_a_browser_as_none(server: Server, wrong: float) -> None:
    live = LiveView(make_policy().spec)
    session = server.app.service.open("openpi", "peer")
    session.close()  # only its name and slot are of interest
    live.opened(session)
    call = Call(
        slot=session.slot,
        video=VIDEO[0].numpy(),
        state=EPISODE.state[0],
        task=TASK,
        executed=0,
        settings=Settings(num_steps=3, planner=None),
    )
    scores = torch.arange(2 * 5.0).reshape(1, 2, 5)
    scores[0, 0, 1] = scores[0, 1, :] = wrong
    imagined = Imagined(value=torch.tensor([[wrong, 1.0, 2.0]], dtype=torch.bfloat16), scores=scores)
    answer = Answer(
        actions=np.zeros((4, 3), np.float32),
        imagined=imagined,
        timing={"act": 0.1},
        waited_s=0.0,
        computed_s=0.1,
        batch_size=1,
    )
    live.answered(session, call, answer)
    shown = json.loads(json.dumps(live.look(), allow_nan=False))["shown"]
    assert shown["values"] == [[0, None]] and shown["search"]["value"] == [None, 1.0, 2.0]
    assert shown["search"]["scores"] == [[0.0, 2.0, 3.0, 4.0], []] and shown["search"]["not_finite"] == 6

    many = torch.randn(1, 1, 5000, generator=torch.Generator().manual_seed(0))
    live.answered(session, call, dataclasses.replace(answer, imagined=Imagined(scores=many)))
    (told,) = live.look()["shown"]["search"]["scores"]
    assert len(told) == NUM_SCORES and told == sorted(told)
    assert (told[0], told[-1]) == (pytest.approx(float(many.min()), 1e-4), pytest.approx(float(many.max()), 1e-4))


def test_the_event_loop_goes_on_while_somebody_looks(server: Server) -> None:
    look_begun, live = threading.Event(), server.app.live
    told: list[Any] = []

    def one() -> None:
        look_begun.set()
        told.append(look(server))

    with live._lock:  # as long as a look takes at most
        thread = threading.Thread(target=one)
        thread.start()
        look_begun.wait()
        time.sleep(0.05)
        assert get(server, "/healthz")[1] == b"OK\n" and not told
    thread.join()
    assert told


def test_the_page_needs_no_token_and_what_it_shows_does() -> None:
    with serving(token="secret") as server:
        page = get(server, "/")
        assert page[0] == 200 and b"page/live.js" in page[1] and page[2]["Content-Type"].startswith("text/html")
        for name, kind in (("live.js", "text/javascript"), ("charts.js", "text/javascript"), ("live.css", "text/css")):
            status, body, headers = get(server, f"/page/{name}")
            assert status == 200 and body and headers["Content-Type"].startswith(kind)
        assert get(server, "/live")[0] == 401 and get(server, "/live", Authorization="Bearer other")[0] == 401
        assert get(server, "/live", Authorization="Bearer secret")[0] == 200
        for name in ("index.py", "..%2fapp.py", "live.txt"):
            assert get(server, f"/page/{name}", Authorization="Bearer secret")[0] == 404


@pytest.mark.parametrize("interval", [-1.0, 3600.0, float("nan")])
def test_an_interval_that_is_none(interval: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to 3600 seconds between imaginations"):
        LiveView(make_policy().spec, interval_s=interval)
