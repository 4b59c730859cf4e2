"""Cameras, markers and looks of Meta-World, at 256 px: what a pixel is can be checked there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from wamkit.envs.base import EpisodeRequest, reset
from wamkit.envs.metaworld import MetaWorldFactory, MetaWorldSimulator
from wamkit.envs.metaworld_cameras import CAMERAS

pytestmark = pytest.mark.sim
SIZE = 256


@pytest.fixture(scope="module")
def simulator() -> Iterator[MetaWorldSimulator]:
    simulator = MetaWorldFactory(cameras=tuple(CAMERAS), height=SIZE, width=SIZE)()
    yield simulator
    simulator.close()


def start(simulator: MetaWorldSimulator, task: str, layout: int = 0, steps: int = 0) -> None:
    reset(simulator, EpisodeRequest(task=task, layout=layout, layout_seed=42, seed=0))
    for _ in range(steps):
        simulator.step(simulator.demonstrate_action())


def pixel_of(simulator: MetaWorldSimulator, camera: str, point: np.ndarray) -> np.ndarray:
    return simulator.camera_matrices()[camera].project(np.asarray(point, dtype=np.float64)[None])[0]


def centroid(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("camera", ["corner", "corner2", "corner3", "corner4", "behindGripper"])
def test_a_known_point_is_where_its_pixels_are(simulator: MetaWorldSimulator, camera: str) -> None:
    start(simulator, "push-v3", steps=25)
    env = simulator._current().env
    puck = env.model.geom("objGeom").id
    mask = simulator.geom_ids()[camera] == puck
    assert mask.sum() > 20
    pixel = pixel_of(simulator, camera, env.data.geom_xpos[puck])
    assert np.linalg.norm(pixel[:2] - centroid(mask)) < 1.0
    assert 0.3 < pixel[2] < 2.5
    # The other way up would be far away: the turned picture and its matrices belong together.
    assert np.linalg.norm((SIZE - 1) - pixel[:2] - centroid(mask)) > 20 or camera == "behindGripper"


def green(image: np.ndarray) -> np.ndarray:
    red, green, blue = (image[..., channel].astype(int) for channel in range(3))
    return (green > 80) & (green > red + 50) & (green > blue + 50)


@pytest.mark.parametrize("camera", ["corner2", "gripperPOV"])
def test_the_marker_that_alone_shows_the_goal_is_drawn_at_the_goal(simulator: MetaWorldSimulator, camera: str) -> None:
    """Also the check of the camera on the hand, which sees the puck too closely for its centroid to be its centre."""
    start(simulator, "push-v3", layout=2, steps=10)
    mask = green(simulator.render()[camera])
    assert mask.sum() > 8
    pixel = pixel_of(simulator, camera, simulator._current().env._target_pos)
    assert np.linalg.norm(pixel[:2] - centroid(mask)) < 1.0


def test_the_hidden_marker_is_all_that_is_missing(simulator: MetaWorldSimulator) -> None:
    start(simulator, "drawer-open-v3", layout=3)
    hidden = simulator.render()["corner2"]
    env = simulator._current().env
    goal = env.model.site("goal").id
    assert env.model.site_rgba[goal, 3] == 0.0
    env.model.site_rgba[goal, 3] = 1.0
    try:
        shown = simulator.render()["corner2"]
    finally:
        env.model.site_rgba[goal, 3] = 0.0
    changed = (shown != hidden).any(axis=-1)
    assert changed.sum() > 5 and green(shown).sum() > green(hidden).sum()
    column, row, depth = pixel_of(simulator, "corner2", env._target_pos)
    radius = simulator.camera_matrices()["corner2"].intrinsics[0, 0] * float(env.model.site_size[goal, 0]) / depth
    rows, columns = np.nonzero(changed)
    assert np.hypot(columns - column, rows - row).max() < radius + 1.0, "something else than the marker changed"


def test_only_cameras_on_the_arm_move(simulator: MetaWorldSimulator) -> None:
    start(simulator, "drawer-open-v3")
    before = simulator.camera_matrices()
    start(simulator, "drawer-open-v3", steps=30)
    after = simulator.camera_matrices()
    for camera in CAMERAS:
        moved = not np.allclose(before[camera].pose, after[camera].pose, atol=1e-4)
        assert moved == (camera in ("gripperPOV", "behindGripper")), camera
        np.testing.assert_allclose(np.linalg.det(after[camera].pose[:3, :3]), 1.0, atol=1e-9)


def test_the_spec_publishes_the_matrices_that_the_scenes_have(simulator: MetaWorldSimulator) -> None:
    for task in ("drawer-open-v3", "soccer-v3"):
        start(simulator, task)
        for published in simulator.robot.cameras:
            matrices = simulator.camera_matrices()[published.name]
            np.testing.assert_allclose(np.array(published.intrinsics), matrices.intrinsics, rtol=1e-12)
            assert (published.pose is None) == (published.name in ("gripperPOV", "behindGripper"))
            if published.pose is not None:
                np.testing.assert_allclose(np.array(published.pose), matrices.pose, atol=1e-8)


def test_the_low_cost_look_is_close_to_the_stock_one_but_not_the_same(simulator: MetaWorldSimulator) -> None:
    """Runs last: it closes this module's simulator, since a process has one GL context."""
    start(simulator, "drawer-open-v3", layout=3)
    low_cost = simulator.render()["corner2"]
    simulator.close()
    stock = MetaWorldFactory(cameras=("corner2",), height=SIZE, width=SIZE, rendering="stock")()
    try:
        assert stock.robot.rendering == "mujoco-stock"
        start(stock, "drawer-open-v3", layout=3)
        difference = np.abs(stock.render()["corner2"].astype(int) - low_cost.astype(int)).mean()
    finally:
        stock.close()
    assert 0.5 < difference < 12.0
