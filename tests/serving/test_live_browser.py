"""The live page in a real browser: a robot acts, and somebody watches."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from wamkit_client import BadRequest, Client

from wamkit.policy import Policy
from wamkit.serving.server import Server

from ..policies import PLANNER, make_policy
from .conftest import TASK, named, serving

pytest.importorskip("playwright", reason="no playwright (bash runs/setup_extras.sh browser)")

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *QUIET)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (bash runs/setup_extras.sh browser)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield running
        running.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visitor:
    """A page, and what went wrong on it."""

    page: Page
    errors: list[str]

    def value(self, script: str) -> Any:
        return self.page.evaluate(script)

    def until(self, condition: str, arg: Any = None) -> None:
        """Wait until a condition of `arg` holds on the page."""
        self.page.wait_for_function(f"arg => {condition}", arg=arg, timeout=20000)

    def says(self, element: str, text: str) -> None:
        self.until(f"document.getElementById('{element}').textContent.includes(arg)", text)


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    """Somebody with a browser of their own, in whose console nothing went wrong; tests clear what they expect there."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    told: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            told.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: told.append(str(error)))
    yield Visitor(page=page, errors=told)
    page.close()
    assert told == []


@contextlib.contextmanager
def showing(visitor: Visitor, policy: Policy | None = None, **settings: Any) -> Iterator[Server]:
    """A server that the visitor leaves before it stops."""
    with serving(policy, **settings) as server:
        yield server
        visitor.page.goto("about:blank")


@contextlib.contextmanager
def acting(server: Server, task: str = TASK, token: str | None = None) -> Iterator[None]:
    """A robot that acts until the block ends."""
    is_over = threading.Event()

    def act() -> None:
        with Client(server.url, token=token) as client:
            client.reset(task)
            row = 0
            while not is_over.wait(0.05):
                client.infer(named(row % 25, executed=4, prompt=task))
                row += 4

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


CALLS = "Number(document.getElementById('observation').dataset.calls)"
LOADED = "[...document.querySelectorAll('#{0} img')].map(image => [image.alt, image.naturalWidth, image.naturalHeight])"


def test_a_robot_acts_and_the_page_follows(visitor: Visitor) -> None:
    with showing(visitor, make_policy(PLANNER), imagine_every_s=0.05) as server:
        visitor.page.goto(server.address)
        visitor.says("nobody", f"Robots connect to {server.url}")
        assert visitor.value("document.getElementById('shown').hidden")
        visitor.value("window.wasNotLoadedAgain = true")
        with acting(server):
            visitor.until(f"{CALLS} >= 2")
            visitor.until("document.getElementById('imagined').dataset.call > 0")
            visitor.until(f"{CALLS} >= arg", visitor.value(CALLS) + 4)
            first = visitor.value("document.getElementById('imagined').dataset.call")
            visitor.until("Number(document.getElementById('imagined').dataset.call) > Number(arg)", first)
            visitor.until("Number(document.getElementById('values').dataset.points) > 2")

            assert visitor.value("document.getElementById('status').className") == "ok"
            assert visitor.value("document.getElementById('policy').textContent") == "tiny"
            assert visitor.value("document.getElementById('fact-robots').textContent") == "1"
            assert visitor.value("document.getElementById('fact-median').textContent").endswith("s")
            assert visitor.value("document.getElementById('fact-planner').textContent") == "2 × 8"
            assert visitor.value("document.querySelectorAll('#sessions tr').length") == 1
            assert visitor.value("document.getElementById('task').textContent") == TASK
            cameras = [[camera.name, camera.width, camera.height] for camera in make_policy().spec.robot.cameras]
            for place in ("observation", "imagined"):
                visitor.until(f"{LOADED.format(place)}.every(([, width]) => width > 0)")
            assert visitor.value(LOADED.format("observation")) == cameras
            assert [name for name, _, _ in visitor.value(LOADED.format("imagined"))] == ["front", "wrist"]
            assert visitor.value("document.querySelectorAll('#state div').length") == 3
        for chart, least in {"values": 2, "value": 4, "latencies": 8, "actions": 3 * 4}.items():
            assert int(visitor.value(f"document.getElementById('{chart}').dataset.points")) >= least, chart
            assert visitor.value(f"document.querySelectorAll('#{chart} polyline').length") >= 1, chart
            words = visitor.value(f"[...document.querySelectorAll('#{chart} .axis')].map(text => text.textContent)")
            assert len(words) == 2 and all(words), chart
        # Two rounds of eight candidates, and the curves of the median and the best.
        assert visitor.value("document.querySelectorAll('#scores .candidate').length") == 16
        assert visitor.value("document.querySelectorAll('#scores polyline').length") == 2
        visitor.says("nobody", "No robot is connected")
        assert visitor.value("window.wasNotLoadedAgain")


@pytest.mark.slow
def test_the_imagined_future_plays(visitor: Visitor) -> None:
    with showing(visitor, imagine_every_s=0.01) as server, Client(server.url) as client:
        visitor.page.goto(server.address)
        visitor.says("status", "serving")
        client.infer(named())
        seen = set()
        visitor.until("document.getElementById('imagined').dataset.frame !== undefined")
        for _ in range(4):
            frame = visitor.value("document.getElementById('imagined').dataset.frame")
            seen.add(visitor.value("document.querySelector('#imagined img').src"))
            visitor.until("document.getElementById('imagined').dataset.frame !== arg", frame)
        assert len(seen) >= 2 and all(source.startswith("data:image/jpeg;base64,") for source in seen)
        visitor.says("step", " ahead, ")
        visitor.says("dreamt", "at the last call")
        visitor.says("scores", "no planner")


@pytest.mark.slow
def test_a_click_chooses_the_robot(visitor: Visitor) -> None:
    with showing(visitor) as server, acting(server, "first task"):
        visitor.page.goto(server.address)
        visitor.until(f"{CALLS} >= 1")
        with acting(server, "second task"):
            second = "#sessions tr:nth-child(2)"
            visitor.until(f"document.querySelector('{second}') !== null")
            visitor.until(f"{CALLS} >= arg", visitor.value(CALLS) + 3)
            assert visitor.value("document.getElementById('task').textContent") == "first task"  # it stays with a robot
            visitor.page.click(f"{second} .task")
            visitor.says("task", "second task")
            visitor.until(f"{CALLS} >= arg", visitor.value(CALLS) + 3)
            assert visitor.value("document.getElementById('task').textContent") == "second task"
            assert visitor.value(f"document.querySelector('{second}').className") == "chosen"
            visitor.page.focus("#sessions tr:nth-child(1)")
            visitor.page.keyboard.press("Enter")
            visitor.says("task", "first task")
            visitor.page.click(f"{second} .task")
            visitor.says("task", "second task")
        visitor.says("task", "first task")  # that of the robot that is left
        assert visitor.value("document.querySelectorAll('#sessions tr').length") == 1


def test_what_a_robot_says_is_text(visitor: Visitor) -> None:
    task = "<img src=x onerror='window.ran = 1'><script>window.ran = 1</script></td><svg onload=window.ran=1>"
    with showing(visitor) as server, acting(server, task):
        visitor.page.goto(server.address)
        visitor.until(f"{CALLS} >= 2")
        assert visitor.value("document.getElementById('task').textContent") == task
        assert visitor.value("document.querySelector('#sessions .task').textContent") == task
        with Client(server.url) as client, pytest.raises(BadRequest):
            client.infer(named(explore_config={"<img src=x onerror='window.ran=1'>": 1}))
        visitor.says("refusals", "<img src=x")
        assert visitor.value("document.querySelectorAll('img[src=x], td script, td svg, #task *').length") == 0
        assert visitor.value("window.ran === undefined")


@pytest.mark.slow
def test_numbers_that_are_not_finite_leave_a_gap(visitor: Visitor) -> None:
    class Broken(Policy):
        def decide(self, slots: Any, **inputs: Any) -> Any:
            decision = super().decide(slots, **inputs)

            def imagine() -> Any:
                imagined = decision.imagine()
                value, scores = imagined.value.clone(), imagined.scores.clone()
                value[:, 1], scores[:, 0, :3] = torch.nan, torch.inf
                return dataclasses.replace(imagined, value=value, scores=scores)

            return dataclasses.replace(decision, imagine=imagine)

        def varied(self, **settings: Any) -> Broken:
            return self

    policy = make_policy(PLANNER)
    policy.__class__ = Broken
    with showing(visitor, policy, imagine_every_s=0.01) as server, acting(server):
        visitor.page.goto(server.address)
        visitor.says("candidates", "3 scores are no finite numbers")
        assert visitor.value("document.querySelectorAll('#scores .candidate').length") == 13
        assert visitor.value("document.querySelectorAll('#value polyline').length") == 1
        assert visitor.value("document.getElementById('status').className") == "ok"


@pytest.mark.slow
def test_the_token_comes_from_the_address(visitor: Visitor) -> None:
    with showing(visitor, token="secret") as server, acting(server, token="secret"):
        for fragment, told in (("", "the server wants a token: add #token="), ("#token=other", "wants another token")):
            visitor.page.goto("about:blank")
            visitor.page.goto(f"{server.address}/{fragment}")
            visitor.says("status", told)
            assert visitor.value("document.getElementById('status').className") == "gone"
            assert visitor.value("document.getElementById('shown').hidden")
        assert visitor.errors and all("401" in error for error in visitor.errors)
        visitor.page.goto(f"{server.address}/#token=secret")  # the page reads itself anew
        visitor.says("status", "serving")
        visitor.errors.clear()
        visitor.until(f"{CALLS} >= 2")


@pytest.mark.slow
def test_a_page_in_the_background_asks_nothing(visitor: Visitor) -> None:
    asked: list[str] = []
    visitor.page.on("request", lambda request: asked.append(request.url))
    with showing(visitor) as server, acting(server):
        visitor.page.goto(server.address)
        visitor.until(f"{CALLS} >= 2")
        turn = "value => { Object.defineProperty(document, 'hidden', { value, configurable: true }); %s }"
        turn %= "document.dispatchEvent(new Event('visibilitychange'))"
        visitor.page.evaluate(turn, True)
        visitor.page.wait_for_timeout(500)  # a look may be under way
        before = len(asked)
        visitor.page.wait_for_timeout(1000)
        assert len(asked) == before
        calls = visitor.value(CALLS)
        visitor.page.evaluate(turn, False)
        visitor.until(f"{CALLS} >= arg", calls + 3)


@pytest.mark.slow
def test_a_server_that_stops_and_comes_back(visitor: Visitor) -> None:
    with serving() as server, acting(server):
        visitor.page.goto(server.address)
        visitor.until(f"{CALLS} >= 2")
        port = int(server.url.rpartition(":")[2])
    visitor.says("status", "no answer from the server")
    assert visitor.value("document.body.className") == "stale"
    with showing(visitor, port=port) as server, acting(server, "another task"):
        visitor.says("status", "serving")
        visitor.says("task", "another task")
        visitor.until(f"{CALLS} >= 2")
        assert visitor.value("document.body.className") == ""
        visitor.until(f"{LOADED.format('observation')}.every(([, width]) => width > 0)")
    assert visitor.errors and all("net::ERR_" in error or "503" in error for error in visitor.errors)
    visitor.errors.clear()


@pytest.mark.slow
def test_the_page_fits_every_screen_by_day_and_night(visitor: Visitor) -> None:
    with showing(visitor, make_policy(PLANNER), imagine_every_s=0.05) as server, acting(server, "long sentence " * 12):
        visitor.page.goto(server.address)
        visitor.until("Number(document.getElementById('scores').dataset.points) > 0")
        colours = set()
        for width, scheme in ((1280, "light"), (800, "dark"), (400, "dark"), (400, "light")):
            visitor.page.set_viewport_size({"width": width, "height": 800})
            visitor.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            colours.add((scheme, visitor.value("getComputedStyle(document.body).backgroundColor")))
            assert visitor.value("document.documentElement.scrollWidth <= innerWidth")
            for chart in ("values", "value", "scores", "actions", "latencies"):
                box = visitor.page.locator(f"#{chart}").bounding_box()
                assert box is not None and box["width"] > 200 and box["height"] > 100
                assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert len(colours) == 2 and len({colour for _, colour in colours}) == 2
