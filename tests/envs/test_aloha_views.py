"""Cameras of gym-aloha at 128 px: what a pixel is can be checked there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from wamkit.envs.aloha import AlohaFactory, AlohaSimulator
from wamkit.envs.aloha_cameras import CAMERAS
from wamkit.envs.base import EpisodeRequest

pytestmark = pytest.mark.sim
SIZE = 128
MOVING = ("left_wrist", "right_wrist", "front_close")


@pytest.fixture(scope="module")
def simulator() -> Iterator[AlohaSimulator]:
    simulator = AlohaFactory(cameras=tuple(CAMERAS), height=SIZE, width=SIZE)()
    yield simulator
    simulator.close()


def start(simulator: AlohaSimulator, steps: int = 0, layout: int = 0) -> None:
    simulator.reset(EpisodeRequest(task="transfer-cube", layout=layout, layout_seed=42, seed=0))
    for _ in range(steps):
        simulator.step(simulator.demonstrate_action())


def centroid(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])


# The wrist's camera sees all of the cube only from above it; from the side a cube's centre is not its pixels' centre.
@pytest.mark.parametrize(
    ("camera", "steps"), [("top", 10), ("angle", 10), ("left_pillar", 10), ("right_pillar", 10), ("right_wrist", 65)]
)
def test_the_cube_is_where_its_pixels_are(simulator: AlohaSimulator, camera: str, steps: int) -> None:
    start(simulator, steps)
    scene = simulator._current()
    cube = scene.model.geom("red_box").id
    mask = simulator.geom_ids()[camera] == cube
    image = simulator.render()[camera].astype(int)
    red = image[..., 0] > image[..., 1:].max(axis=-1) + 60
    assert mask.sum() > 8
    np.testing.assert_array_equal(mask, red, err_msg="the picture and the geoms at its pixels belong together")
    column, row, depth = simulator.camera_matrices()[camera].project(scene.data.geom_xpos[cube][None])[0]
    off = np.linalg.norm(np.array([column, row]) - centroid(mask))
    assert off < (4.0 if camera == "right_wrist" else 1.0) and 0.1 < depth < 1.5
    turned = SIZE - 1 - np.array([column, row])
    assert np.linalg.norm(turned - centroid(mask)) > 2 * off


def test_pictures_are_upright(simulator: AlohaSimulator) -> None:
    start(simulator)
    matrices = simulator.camera_matrices()
    for camera in CAMERAS:
        down = matrices[camera].pose[:3, 1]
        if camera == "top":
            np.testing.assert_allclose(down, [0.0, -1.0, 0.0], atol=1e-6)
        else:
            assert down[2] < -0.4, f"{camera}: the picture's downward direction must point down in the world"
    # The left arm stands left in the pictures from above and from the front.
    bases = np.stack([simulator._current().data.body(f"vx300s_{side}/gripper_link").xpos for side in ("left", "right")])
    for camera in ("top", "angle"):
        left, right = matrices[camera].project(bases)[:, 0]
        assert left < SIZE / 2 < right


def test_only_cameras_on_the_arms_move(simulator: AlohaSimulator) -> None:
    start(simulator)
    before = simulator.camera_matrices()
    start(simulator, steps=150)
    after = simulator.camera_matrices()
    for camera in CAMERAS:
        moved = not np.allclose(before[camera].pose, after[camera].pose, atol=1e-4)
        assert moved == (camera in MOVING), camera
        np.testing.assert_allclose(np.linalg.det(after[camera].pose[:3, :3]), 1.0, atol=1e-9)


def test_the_spec_publishes_the_matrices_that_the_scenes_have(simulator: AlohaSimulator) -> None:
    for task in ("transfer-cube", "insertion"):
        simulator.reset(EpisodeRequest(task=task, layout=0, layout_seed=0, seed=0))
        for published in simulator.robot.cameras:
            matrices = simulator.camera_matrices()[published.name]
            np.testing.assert_allclose(np.array(published.intrinsics), matrices.intrinsics, rtol=1e-12)
            assert (published.pose is None) == (published.name in MOVING)
            if published.pose is not None:
                np.testing.assert_allclose(np.array(published.pose), matrices.pose, atol=1e-8)


def test_the_low_cost_look_is_close_to_the_stock_one_but_not_the_same(simulator: AlohaSimulator) -> None:
    """Runs last: it closes this module's simulator, since a process has one GL context."""
    start(simulator, layout=3)
    low_cost = simulator.render()["top"]
    simulator.close()
    stock = AlohaFactory(cameras=("top",), height=SIZE, width=SIZE, rendering="stock")()
    try:
        assert stock.robot.rendering == "mujoco-stock"
        start(stock, layout=3)
        difference = np.abs(stock.render()["top"].astype(int) - low_cost.astype(int)).mean()
    finally:
        stock.close()
    assert 0.1 < difference < 12.0
