"""Chunks imagined one after the other, against single predictions fed on by hand; and the command that shows them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from wamkit.cli.main import main
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.writer import LeRobotWriter
from wamkit.evaluation.imagined import imagine_episode, sheet
from wamkit.evaluation.open_loop_results import DatasetIdentity
from wamkit.evaluation.results import PolicyIdentity
from wamkit.imagination import imagine
from wamkit.types import Observation

from .policies import CONFIG, EPISODE, PLANNER, VIDEO, make_policy, watched

HORIZON = CONFIG.action_horizon
SEEN = Observation(
    video=VIDEO[[0, 4]].transpose(0, 1)[None], state=torch.from_numpy(EPISODE.state[[4]]), task=[EPISODE.task]
)


@pytest.mark.parametrize(("offset", "row"), [(0, HORIZON - 1), (1, HORIZON - 1)])
@pytest.mark.parametrize("planned", [False, True])
def test_a_chunk_goes_on_from_what_the_one_before_imagined(planned: bool, offset: int, row: int) -> None:
    policy = make_policy(PLANNER if planned else None)
    seen = imagine(policy, SEEN, num_chunks=3, keys=[(7,)], action_offset=offset)
    observation, frames, actions = SEEN, [], []
    for chunk in range(3):
        prediction = policy.predict(observation, keys=[(7, chunk)])
        future = prediction.sampled.future
        assert future is not None and prediction.states is not None
        frames.append(future)
        actions.append(prediction.actions)
        video = torch.stack((observation.video[:, :, 1], future[:, :, 8]), dim=2)
        observation = Observation(video=video, state=prediction.states[:, row], task=[EPISODE.task])
    assert torch.equal(seen.video, torch.cat(frames, dim=2)) and torch.equal(seen.actions, torch.cat(actions, dim=1))
    assert not torch.equal(frames[1], frames[0]) and not torch.equal(frames[2], frames[1])
    assert seen.starts == (0, 9, 18) and seen.video_steps == tuple(range(1, 28))
    assert seen.action_steps == seen.value_steps == tuple(range(offset, 27 + offset))
    assert seen.value is not None and seen.value.shape == (1, 27)
    assert seen.states is not None and seen.states.shape == (1, 27, 3)


@pytest.mark.parametrize(
    ("stride", "num_context", "later", "is_known"),
    [
        (1, 2, [[8, 9], [17, 18]], [[True, True]] * 2),
        (4, 3, [[1, 5, 9], [10, 14, 18]], [[True, True, True]] * 2),
        (9, 2, [[0, 9], [9, 18]], [[True, True]] * 2),
        (3, 5, [[0, 0, 3, 6, 9], [6, 9, 12, 15, 18]], [[False, True, True, True, True], [True] * 5]),
        (11, 2, [[9, 9], [7, 18]], [[False, True], [True, True]]),
        (20, 2, [[9, 9], [18, 18]], [[False, True]] * 2),
    ],
)
@pytest.mark.usefixtures("types_unchecked")
def test_a_memory_with_a_stride_is_of_what_was_imagined_for_these_steps(
    stride: int, num_context: int, later: list[list[int]], is_known: list[list[bool]]
) -> None:
    """Step 0 is the newest real frame; what lies before it is known to be made up here."""
    policy, model = watched(stride, num_context)
    observation = Observation(
        video=VIDEO[[4] * num_context].transpose(0, 1)[None],
        state=SEEN.state,
        task=SEEN.task,
        known=torch.tensor([[False] * (num_context - 1) + [True]]),
    )
    seen = imagine(policy, observation, num_chunks=3, keys=[(7,)])
    pictures = torch.cat((observation.video[0, :, -1:], seen.video[0]), dim=1).transpose(0, 1)  # by step
    assert seen.video_steps == tuple(range(1, 28))
    for memory, steps in zip(model.memories[1:], later, strict=True):
        assert torch.equal(memory[0], pictures[steps])
    assert model.known == [[[False] * (num_context - 1) + [True]], *([known] for known in is_known)]


@pytest.mark.usefixtures("types_unchecked")
def test_real_frames_are_remembered_as_far_as_they_were_seen() -> None:
    """With a stride of nine, a chunk's length, the memory of the second chunk reaches back to real frames."""
    policy, model = watched(9, num_context=3)
    video = VIDEO[[0, 2, 4]].transpose(0, 1)[None].expand(2, -1, -1, -1, -1, -1)
    known = torch.tensor([[True, True, True], [False, False, True]])
    observation = Observation(video=video, state=SEEN.state.expand(2, -1), task=SEEN.task * 2, known=known)
    seen = imagine(policy, observation, num_chunks=2, keys=[(7,), (8,)])
    last = seen.video[:, :, 8]
    assert torch.equal(model.memories[1][0], torch.stack((VIDEO[2], VIDEO[4], last[0])))
    assert torch.equal(model.memories[1][1], torch.stack((VIDEO[4], VIDEO[4], last[1])))
    assert model.known[1] == [[True, True, True], [False, True, True]]


def test_rows_imagine_apart_from_each_other() -> None:
    policy = make_policy()
    other = Observation(
        video=VIDEO[[8, 12]].transpose(0, 1)[None], state=torch.from_numpy(EPISODE.state[[12]]), task=["stay"]
    )
    both = Observation(
        video=torch.cat((SEEN.video, other.video)),
        state=torch.cat((SEEN.state, other.state)),
        task=[EPISODE.task, "stay"],
    )
    together = imagine(policy, both, num_chunks=2, keys=[(1,), (2,)])
    for index, (observation, key) in enumerate(((SEEN, 1), (other, 2))):
        alone = imagine(policy, observation, num_chunks=2, keys=[(key,)])
        torch.testing.assert_close(together.actions[index], alone.actions[0], atol=1e-4, rtol=1e-4)
        difference = together.video[index].int() - alone.video[0].int()
        assert difference.abs().max() <= 1, "rounding alone"


def test_cameras_of_another_size_than_the_model() -> None:
    """Real frames are brought to the model's size, which imagined ones have."""
    policy = make_policy()
    robot = policy.spec.robot
    cameras = tuple(dataclasses.replace(camera, height=48, width=64) for camera in robot.cameras)
    policy.spec = dataclasses.replace(
        policy.spec, robot=dataclasses.replace(robot, cameras=cameras), image_size=(32, 32), preprocess="resize"
    )
    large = torch.randint(0, 256, (1, 2, 2, 48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = imagine(policy, dataclasses.replace(SEEN, video=large), num_chunks=2, keys=[(0,)])
    assert seen.video.shape == (1, 2, 18, 32, 32, 3)
    again = imagine(policy, dataclasses.replace(SEEN, video=policy.seen(large)), num_chunks=2, keys=[(0,)])
    assert torch.equal(seen.video, again.video)


def test_what_cannot_be_imagined_is_said() -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match="expected 1 or more chunks to imagine, got 0"):
        imagine(policy, SEEN, num_chunks=0, keys=[(0,)])
    with pytest.raises(ValueError, match="expected 2 frames of every camera"):
        imagine(policy, dataclasses.replace(SEEN, video=SEEN.video[:, :, :1]), num_chunks=1, keys=[(0,)])


def test_a_policy_without_predicted_states_imagines_one_chunk() -> None:
    config = dataclasses.replace(
        CONFIG,
        concatenates_state=False,
        network=dataclasses.replace(
            CONFIG.network,
            action=dataclasses.replace(CONFIG.network.action, channels=3),  # type: ignore[type-var]
        ),
    )
    policy = make_policy(config=config)
    assert imagine(policy, SEEN, num_chunks=1, keys=[(0,)]).states is None
    with pytest.raises(ValueError, match=r"reads the robot.s state and predicts none"):
        imagine(policy, SEEN, num_chunks=2, keys=[(0,)])


def test_guidance_changes_what_is_imagined_and_no_action() -> None:
    plain, guided = make_policy(PLANNER), make_policy(PLANNER)
    guided.video_guidance = 4.0
    ours, theirs = (each.predict(SEEN, keys=[(0, 0)]) for each in (plain, guided))
    assert torch.equal(ours.actions, theirs.actions)
    assert ours.sampled.future is not None and theirs.sampled.future is not None
    assert not torch.equal(ours.sampled.future, theirs.sampled.future)


def test_a_sheet_shows_real_above_imagined() -> None:
    real, imagined = (np.full((4, 96, 96, 3), level, dtype=np.uint8) for level in (10, 20))
    picture = sheet(real, imagined, num_chunks=2)
    assert picture.shape == (2 * (96 + 2 + 96 + 8), 2 * (96 + 2), 3)
    assert (picture[:96, :96] == 10).all() and (picture[98 : 98 + 96, :96] == 20).all()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagine") / "square"
    with LeRobotWriter(root, synthetic_robot()) as writer:
        for episode in synthetic_episodes(2, length=22):
            writer.add(episode)
    return root


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("stride", "row", "rows", "known"),
    [
        (None, 10, [2, 6, 10], [True, True, True]),
        (None, 5, [0, 1, 5], [False, True, True]),
        (1, 10, [8, 9, 10], [True, True, True]),
        (1, 0, [0, 0, 0], [False, False, True]),
        (3, 4, [1, 1, 4], [False, True, True]),
    ],
)
def test_an_imagination_begins_with_the_memory_of_its_row(
    tmp_path: Path, stride: int | None, row: int, rows: list[int], known: list[bool]
) -> None:
    policy, model = watched(stride, num_context=3)
    imagine_episode(
        policy,
        MemoryDataset([EPISODE], synthetic_robot()),
        identity=PolicyIdentity(name="tiny", fingerprint="0"),
        source=DatasetIdentity(name="square", fingerprint=None, robot="square", was_trained_on=None),
        out=tmp_path / "out",
        row=row,
        num_chunks=1,
    )
    assert torch.equal(model.memories[0][0], VIDEO[rows]) and model.known == [[known]]


def test_the_command_line(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "policy", tmp_path / "out"
    make_policy().save(folder, config=CONFIG.to_dict(), training={"recipe": {"data": {"action_offset": 1}}})
    arguments = ["imagine", str(folder), "--data", str(dataset), "--num-steps", "2", "--device", "cpu"]
    asked = [*arguments, "--output", str(out), "--episode", "1", "--row", "3", "--chunks", "3", "--json"]
    assert main(asked) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((out / "imagined.json").read_text())
    assert [chunk["row"] for chunk in results["chunks"]] == [3, 12, 21]
    assert [frame["row"] for frame in results["frames"]] == list(range(4, 31))
    assert all((frame["psnr"] is None) == (frame["row"] > 21) for frame in results["frames"])
    assert results["actions"][0]["step"] == 1 and len(results["actions"]) == 27
    recorded = LeRobotDataset(dataset).columns(1)["action"]
    np.testing.assert_allclose(results["actions"][4]["recorded"], recorded[3 + 5], rtol=1e-6)
    assert results["actions"][-1]["recorded"] is None
    assert results["values"][0]["recorded"] is None, "this dataset has no value column"
    for camera in ("front", "wrist"):
        with Image.open(out / "frames" / f"{camera}.png") as picture:
            assert picture.width > 9 * 32
    with av.open(str(out / "imagined.mp4")) as film:
        assert len(list(film.decode(video=0))) >= 27
    before = (out / "imagined.json").read_bytes()
    assert main(asked) == 2 and "holds an earlier result" in capsys.readouterr().err
    assert main([*asked, "--fresh"]) == 0 and (out / "imagined.json").read_bytes() == before
    capsys.readouterr()
    shown = [*arguments, "--output", str(tmp_path / "b"), "--chunks", "1", "--guidance", "2", "--planner", "wav"]
    assert main([*shown, "--planner-iterations", "1", "--candidates", "2", "--value-samples", "2"]) == 0
    assert "steps 1 to 9" in capsys.readouterr().out
    for wrong, message in (
        (["--episode", "9"], "got [9]"),
        (["--row", "22"], "expected a row of episode 0, 0 to 21, got 22"),
        (["--chunks", "0"], "expected chunks >= 1"),
        (["--max-rows", "0"], "expected max_rows >= 1"),
        (["--guidance", "-1"], "expected video_guidance of 0 or more"),
        (["--candidates", "3"], "--planner none uses none"),
    ):
        assert main([*arguments, "--output", str(tmp_path / "c"), *wrong]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").write_text("")
    assert main([*arguments, "--output", str(tmp_path / "d")]) == 2
    assert "holds 'thesis.txt'" in capsys.readouterr().err
