"""LIBERO as the package runs it, on scene assets made by `libero_pack`; with the real ones where they are."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from wamkit.envs import require_demonstrator
from wamkit.envs.base import DemonstrationOptions, EpisodeRequest, Simulator, demonstrate, reset, run_chunk
from wamkit.envs.libero import NO_OP, STEP_LIMIT, STORED, LiberoFactory, LiberoSimulator
from wamkit.envs.libero_assets import ASSETS_VARIABLE, find_files, find_package
from wamkit.envs.libero_tasks import SUITES, sentence, task_ids, task_sentences
from wamkit.spec import require_match


def is_installed() -> bool:
    try:
        find_package()
    except ModuleNotFoundError:
        return False
    return True


pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(not is_installed(), reason="LIBERO is not installed (bash runs/setup_extras.sh libero)"),
]
SOUP = "libero_object/0"


@pytest.fixture(scope="module")
def pack(libero_pack: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = libero_pack.write_pack(tmp_path_factory.mktemp("libero") / "assets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ASSETS_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="module")
def small(pack: Path) -> Iterator[LiberoSimulator]:
    simulator = LiberoFactory(height=64, width=64)()
    yield simulator
    simulator.close()


def request_for(task: str = SOUP, layout: int = 0, layout_seed: int = 42, seed: int = 0) -> EpisodeRequest:
    return EpisodeRequest(task=task, layout=layout, layout_seed=layout_seed, seed=seed)


def act(x: float = 0, y: float = 0, z: float = 0, gripper: float = -1) -> np.ndarray:
    return np.array([x, y, z, 0, 0, 0, gripper], dtype=np.float32)


def test_a_frame_is_two_pictures_eight_numbers_and_a_sentence(small: LiberoSimulator) -> None:
    frame = reset(small, request_for())
    assert isinstance(small, Simulator) and tuple(frame.video) == ("agentview", "robot0_eye_in_hand")
    assert all(image.shape == (64, 64, 3) and image.dtype == np.uint8 for image in frame.video.values())
    assert frame.sentence == "pick up the alphabet soup and place it in the basket"
    assert frame.state.shape == (8,) and frame.state.dtype == np.float32
    assert abs(frame.state[3]) == pytest.approx(np.pi, abs=0.1)  # the hand points down
    assert frame.state[6] == pytest.approx(0.04, abs=0.003) and frame.state[7] == pytest.approx(-0.04, abs=0.003)
    down = small.camera_matrices()["agentview"].pose[:3, 1]
    assert down[2] < -0.5, "the picture's downward direction must point down in the world"


def test_actions_move_the_hand_in_the_world_and_positive_closes(small: LiberoSimulator) -> None:
    start = reset(small, request_for()).state
    for axis in range(3):
        before = small.state()[axis]
        for _ in range(4):
            small.step(act(*(1.0 if axis == other else 0.0 for other in range(3))))
        assert small.state()[axis] > before + 0.02
    for _ in range(8):
        small.step(act(gripper=1))
    assert small.state()[6] < start[6] - 0.02 and small.state()[7] > start[7] + 0.02
    np.testing.assert_array_equal(small.action_bounds(), [[-1.0] * 7, [1.0] * 7])


def test_equal_requests_give_equal_bits_whatever_ran_before(small: LiberoSimulator) -> None:
    def course(request: EpisodeRequest) -> tuple[list[np.ndarray], list[np.ndarray]]:
        frame = reset(small, request)
        chunk = run_chunk(small, np.stack([act(0.3, -0.2, -0.5)] * 4), record=True).recorded
        assert chunk is not None
        return [frame.state, chunk.state], [*frame.video.values(), *chunk.video.values()]

    for wanted in (request_for(layout=3), request_for(layout=2, layout_seed=STORED)):
        first = course(wanted)
        course(request_for("libero_object/1", layout=9))
        small.step(act(1, 1, 1, 1))
        again = course(wanted)
        for one, other in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True):
            np.testing.assert_array_equal(one, other)
    one, other = (reset(small, request_for(layout=layout)).video["agentview"] for layout in (0, 1))
    assert (one != other).any()


def test_drawing_leaves_numpys_generator_alone(small: LiberoSimulator) -> None:
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    small.reset(request_for(layout=6))
    assert np.random.rand() == expected


def test_stored_initial_states_are_the_packages(small: LiberoSimulator) -> None:
    small.reset(request_for())
    scene, states = small._current(), find_files().initial_states(SOUP)
    assert len(states) == 50
    for layout in (0, 49):
        small._restore(scene, layout)  # what a reset does before objects settle
        np.testing.assert_allclose(scene.env.sim.get_state().flatten(), states[layout], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="stored layouts 0 to 49, not 50"):
        small.reset(request_for(layout=50, layout_seed=STORED))


def test_episodes_begin_with_ten_steps_at_rest(pack: Path, small: LiberoSimulator) -> None:
    small.reset(request_for(layout=4, layout_seed=STORED))
    settled = small._current().env.sim.get_state().flatten()
    env = small._current().env
    small._restore(small._current(), 4)
    for _ in range(10):
        env.step(np.array(NO_OP))
    np.testing.assert_array_equal(env.sim.get_state().flatten(), settled)


def test_the_sentences_and_names_are_the_packages() -> None:
    source = (find_package() / "benchmark" / "libero_suite_task_map.py").read_text()
    table = ast.literal_eval(source.partition("libero_task_map = ")[2])  # importing it would ask for a configuration
    assert {suite: list(names) for suite, names in SUITES.items()} == table
    assert sentence("libero_10/2") == "turn on the stove and put the moka pot on it"
    assert sentence("libero_90/0").startswith("close the top drawer of the cabinet")
    sentences = task_sentences()
    assert len(sentences) == 130 and all(text == text.lower() and "_" not in text for text in sentences.values())


@pytest.mark.parametrize("suite", list(SUITES))
def test_every_suite_has_its_files(suite: str, pack: Path) -> None:
    files = find_files()
    for task in (task_ids(suite)[0], task_ids(suite)[-1]):
        assert files.task_file(task).is_file()
        states = files.initial_states(task)
        assert states.shape[0] == 50 and np.isfinite(states).all()


def test_pixels_and_states_are_those_of_the_packages_own_observations(pack: Path, tmp_path: Path) -> None:
    """Both pictures turned by 180 degrees, as the published training data are; each renderer in its own process."""
    ours, theirs = tmp_path / "ours.npz", tmp_path / "theirs.npz"
    run_script(
        f"""
import numpy as np
from wamkit.envs import require_demonstrator
from wamkit.envs.base import EpisodeRequest
from wamkit.envs.libero import LiberoFactory
simulator = LiberoFactory(rendering="stock", height=96, width=96)()
simulator.reset(EpisodeRequest(task={SOUP!r}, layout=3, layout_seed=0, seed=0))
sim = simulator._current().env.sim
sim.forward()
np.savez({str(ours)!r}, simulation=sim.get_state().flatten(), state=simulator.state(), **simulator.render())
simulator.close()
"""
    )
    run_script(
        f"""
import numpy as np
from wamkit.envs.gl import choose_backend
choose_backend()
from wamkit.envs.libero_assets import find_files, import_package
files = find_files()
package = import_package(files)
import robosuite.utils.transform_utils as transform
env = package.env_wrapper.OffScreenRenderEnv(
    bddl_file_name=str(files.task_file({SOUP!r})), camera_heights=96, camera_widths=96
)
env.reset()
env.env.sim.set_state_from_flattened(np.load({str(ours)!r})["simulation"])
env.env.sim.forward()
env._update_observables(force=True)
seen = env.env._get_observations()
state = [seen["robot0_eef_pos"], transform.quat2axisangle(seen["robot0_eef_quat"]), seen["robot0_gripper_qpos"]]
pictures = {{name: seen[name + "_image"][::-1, ::-1] for name in ("agentview", "robot0_eye_in_hand")}}
np.savez({str(theirs)!r}, state=np.concatenate(state), **pictures)
env.close()
"""
    )
    one, other = np.load(ours), np.load(theirs)
    np.testing.assert_allclose(one["state"], other["state"], atol=1e-6)
    for camera in ("agentview", "robot0_eye_in_hand"):
        np.testing.assert_array_equal(one[camera], other[camera])
        assert one[camera].std() > 5


def test_a_point_of_an_object_projects_onto_its_pixels(small: LiberoSimulator) -> None:
    small.reset(request_for())
    scene = small._current()
    data, model = scene.data, scene.model
    for name in ("alphabet_soup_1", "basket_1", "milk_1"):
        body = scene.env.obj_body_id[name]
        place = data.xpos[body] + ([0, 0, 0.07] if name == "basket_1" else [0, 0, 0])
        column, row, depth = small.camera_matrices()["agentview"].project(place[None])[0]
        ids = small.geom_ids()["agentview"]
        rows, columns = np.nonzero(np.isin(ids, np.flatnonzero(model.geom_bodyid == body)))
        assert len(rows) > 3 and depth > 0.3
        assert abs(columns.mean() - column) < 2.5 and abs(rows.mean() - row) < 2.5, name


@pytest.mark.parametrize("task", [SOUP, "libero_object/1"])
def test_the_demonstrator_solves_a_task(small: LiberoSimulator, task: str) -> None:
    options = DemonstrationOptions(max_steps=200, record_video=False, noise_std=0.1)
    episode = demonstrate(small, request_for(task, layout=5, seed=5), options)
    assert episode.is_success and 60 < len(episode) < 200
    assert np.abs(episode.actions).max() <= 1 and set(np.unique(episode.actions[:, 6])) == {-1.0, 1.0}


def test_contacts_of_the_fingers_while_it_holds_something(small: LiberoSimulator) -> None:
    small.reset(request_for(layout=7))
    assert small.contacts() == []
    for _ in range(60):
        small.step(small.demonstrate_action())
    touching = small.contacts()
    assert touching and all(contact.is_pad for contact in touching)
    assert any("alphabet_soup_1_main" in contact.bodies for contact in touching)
    assert max(contact.normal_force for contact in touching) > 1


def test_what_a_user_can_do_wrong(small: LiberoSimulator) -> None:
    for make, message in (
        (lambda: LiberoFactory(cameras=("agentvew",)), "did you mean 'agentview'"),
        (lambda: LiberoFactory(height=0), "positive image size"),
        (lambda: LiberoFactory(settle_steps=-1), "settle_steps of 0 or more"),
        (lambda: small.reset(request_for("libero_object/10")), "unknown LIBERO task"),
        (lambda: small.reset(request_for("libero_object/01")), "unknown LIBERO task"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    small.reset(request_for())
    for action in (np.zeros(6), np.full(7, np.nan)):
        with pytest.raises(ValueError, match="expected 7 finite action numbers"):
            small.step(action.astype(np.float32))
    small._steps = STEP_LIMIT - 1
    assert small.step(act()).truncated
    with pytest.raises(ValueError, match="limit of 1000"):
        small.step(act())


def test_a_missing_asset_is_named_with_what_to_do(pack: Path, small: LiberoSimulator, tmp_path: Path) -> None:
    model = pack / "stable_hope_objects" / "orange_juice" / "orange_juice.xml"
    picture = pack / "stable_hope_objects" / "bbq_sauce" / "texture_map.png"
    for path, task in ((model, "libero_object/9"), (picture, "libero_object/3")):
        content = path.read_bytes()
        path.unlink()
        try:
            with pytest.raises(FileNotFoundError, match=rf"{task} needs a scene asset .*{ASSETS_VARIABLE}"):
                small.reset(request_for(task))
        finally:
            path.write_bytes(content)
    small.reset(request_for())  # and the simulator goes on


def test_without_assets_the_message_says_where_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ASSETS_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="lerobot/libero-assets") as caught:
        find_files()
    assert str(tmp_path) in str(caught.value) and ASSETS_VARIABLE in str(caught.value)


def test_assets_are_found_where_a_configuration_says(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ASSETS_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    (tmp_path / "config.yaml").write_text(json.dumps({"assets": str(pack)}))  # JSON is YAML
    assert find_files().assets == pack.resolve()


def test_importing_asks_nothing_and_fetches_nothing(pack: Path, tmp_path: Path) -> None:
    """With an empty home, a closed standard input and no network, as in a service."""
    run_script(
        """
import socket
def refuse(*arguments, **settings):
    raise AssertionError("the import went to the network")
socket.socket.connect = refuse
from wamkit.envs import require_demonstrator
from wamkit.envs.base import EpisodeRequest
from wamkit.envs.libero import LiberoFactory
simulator = LiberoFactory(height=32, width=32)()
simulator.reset(EpisodeRequest(task="libero_object/2", layout=0, layout_seed=0, seed=0))
simulator.close()
""",
        HOME=str(tmp_path),
        LIBERO_CONFIG_PATH="",
    )
    assert not (tmp_path / ".libero").exists()


def test_tasks_without_a_script_are_told_before_anything_is_made(pack: Path, tmp_path: Path) -> None:
    scripted = [task for suite in ("libero_spatial", "libero_object", "libero_goal") for task in task_ids(suite)]
    require_demonstrator("libero", scripted)
    require_demonstrator("metaworld", ["drawer-open-v3"])
    output = tmp_path / "data"
    command = ["record", SOUP, "libero_10/3", "--suite", "libero", "--output", str(output)]
    done = subprocess.run([sys.executable, "-m", "wamkit", *command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and not output.exists()
    assert "libero_10/3 (no script for: close white_cabinet_1_bottom_region); leave them out" in unwrapped(done.stderr)


def test_the_published_robot_fits_the_simulator(pack: Path) -> None:
    from wamkit.recipes.published_robots import libero_robot

    published = libero_robot()
    offered = LiberoFactory(height=256, width=256, rendering="stock").robot
    require_match(published, offered, wanted_by="a published policy", offered_by="LIBERO", in_order=True)


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def run_script(script: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
