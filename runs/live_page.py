"""A picture of the live page while a simulated robot acts, taken in a real browser.

python runs/live_page.py --output docs/images/live.png

Serves a policy with a small planner, lets one Meta-World robot ask it through the wire at the robot's own pace, opens
the page in headless Chromium and takes the picture in the middle of the episode. Needs the browser of
`bash runs/setup_extras.sh browser`.
"""

from __future__ import annotations

import argparse
import dataclasses
import threading
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from wamkit.envs.base import EpisodeRequest
from wamkit.envs.gl import choose_backend
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.envs.workers import WorkerPool
from wamkit.evaluation.results import PolicyIdentity
from wamkit.planning.config import WAV
from wamkit.policy import load_policy
from wamkit.rollout import rollout
from wamkit.serving.config import ServerConfig
from wamkit.serving.remote import RemotePolicy
from wamkit.serving.server import Server, bind, build

CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")


def act(url: str, options: argparse.Namespace) -> None:
    """One episode through the wire, no faster than the robot."""
    policy = RemotePolicy(url)
    robot = policy.spec.robot
    factory = MetaWorldFactory(cameras=robot.camera_names, height=robot.cameras[0].height, width=robot.cameras[0].width)
    request = EpisodeRequest(task=options.task, layout=options.layout, layout_seed=1000, seed=0)
    try:
        with WorkerPool(factory, 1) as pool:
            for outcome in rollout(
                policy,
                pool,
                [request],
                max_steps=options.max_steps,
                on_steps=lambda steps: time.sleep(steps / robot.control_hz),
            ):
                print(f"{outcome.sentence}: {'solved' if outcome.success else 'not solved'} in {outcome.steps} steps")
    finally:
        policy.close()


def photograph(address: str, options: argparse.Namespace, robot: threading.Thread) -> None:
    """The page, once the robot has made so many calls."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=list(CHROMIUM))
        page = browser.new_page(
            viewport={"width": options.width, "height": options.height},
            color_scheme="dark" if options.dark else "light",
        )
        page.goto(address)
        robot.start()
        page.wait_for_function(
            "calls => Number(document.getElementById('observation').dataset.calls) >= calls", arg=options.calls
        )
        page.wait_for_function("() => document.getElementById('imagined').dataset.frame >= 1")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=options.output, full_page=True)
        browser.close()
    print(f"{options.output}: {options.output.stat().st_size // 1024} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=Path("zoo/wav-metaworld-small"), help="policy folder")
    parser.add_argument("--output", type=Path, default=Path("outputs/live.png"), help="default: %(default)s")
    parser.add_argument("--task", default="drawer-open-v3", help="default: %(default)s")
    parser.add_argument("--layout", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--max-steps", type=int, default=500, help="of the episode (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=9, help="calls before the picture (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1280, help="pixels (default: %(default)s)")
    parser.add_argument("--height", type=int, default=900, help="pixels, at least (default: %(default)s)")
    parser.add_argument("--dark", action="store_true", help="in dark colours")
    parser.add_argument("--chromium", type=Path, default=Path("/usr/bin/chromium"), help="default: %(default)s")
    options = parser.parse_args()

    choose_backend()
    planner = dataclasses.replace(WAV, iterations=3, num_videos=8, num_values=2)
    policy = load_policy(options.policy, planner=planner)
    identity = PolicyIdentity(name=options.policy.name, fingerprint=policy.fingerprint)
    config = ServerConfig(port=0)
    app = build(policy, config, identity=dataclasses.asdict(identity), values=True, imagine_every_s=0.5)
    with bind(config) as listening, Server(app, listening).running() as server:
        robot = threading.Thread(target=act, args=(server.url, options), name="robot")
        photograph(server.address, options, robot)
        robot.join()


if __name__ == "__main__":
    main()
