"""Action representations: what the network learns inverts to what the robot ran."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from wamkit.data.actions import ActionTransform
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import feature_statistics
from wamkit.data.synthetic import MemoryDataset, synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.windows import WindowConfig
from wamkit.episode import Episode
from wamkit.spec import ChannelSpec, RobotSpec

LENGTH, HORIZON = 30, 8


def arm() -> RobotSpec:
    """Position targets for two joints and a gripper; the state names them in another order."""
    robot = synthetic_robot()
    joints = tuple(ChannelSpec(name=name, unit="rad") for name in ("shoulder", "elbow"))
    return dataclasses.replace(
        robot,
        action=(*joints, ChannelSpec(name="gripper")),
        state=(ChannelSpec(name="opening"), *joints),
        action_kind="absolute",
        gripper_channels=(2,),
    )


def episodes(count: int = 3) -> list[Episode]:
    """The state follows the action of the row before, as of a robot that reaches its targets."""
    from wamkit.data.synthetic import synthetic_episodes

    made = []
    for number, episode in enumerate(synthetic_episodes(count, length=LENGTH)):
        rng = np.random.default_rng(number)
        joints = 0.1 * rng.normal(size=(LENGTH + 1, 2)).cumsum(0) + number
        gripper = np.sign(rng.normal(size=(LENGTH, 1)))
        state = np.concatenate([rng.uniform(size=(LENGTH, 1)), joints[:-1]], axis=1)
        actions = np.concatenate([joints[1:], gripper], axis=1)
        made.append(dataclasses.replace(episode, actions=actions.astype(np.float32), state=state.astype(np.float32)))
    return made


def statistics(made: list[Episode]) -> dict[str, object]:
    return {
        "action": feature_statistics(np.concatenate([episode.actions for episode in made])),
        "action_delta": feature_statistics(np.concatenate([np.diff(episode.actions, axis=0) for episode in made])),
        "state": feature_statistics(np.concatenate([episode.state for episode in made])),
    }


@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
@pytest.mark.parametrize("type", ["absolute", "delta", "relative"])
def test_what_is_learnt_inverts_to_the_recorded_actions(type: str, kind: str) -> None:
    made, robot = episodes(), arm()
    transform = ActionTransform.from_statistics(type, kind, statistics(made), robot)  # type: ignore[arg-type]
    state = Normalizer.from_statistics(kind, statistics(made)["state"])  # type: ignore[arg-type]
    loader = WindowLoader(
        MemoryDataset(made, robot),
        WindowConfig(context=1, chunk=4, action_horizon=HORIZON, pick="spaced", action_offset=0),
        action=transform,
        state=state,
        batch_size=12,
        seed=0,
    )
    batch, rows = loader.batch(0, need_future=False), loader.rows(0)
    physical = state.denormalize(batch.state)
    recorded = torch.stack(
        [torch.from_numpy(made[e].actions[r]) for e, r in zip(rows.episode, rows.action, strict=True)]
    )
    got = transform.denormalize(batch.actions, physical)
    kept = ~batch.is_padded
    if type == "delta":
        kept &= torch.from_numpy(rows.action[:, :1] > 0)  # the first action of an episode has none before it
    assert kept.sum() > 50
    torch.testing.assert_close(got[kept], recorded[kept], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(transform.normalize_chunk(got, physical), batch.actions, atol=1e-4, rtol=1e-4)
    # grippers stay absolute
    absolute = ActionTransform.from_statistics("absolute", kind, statistics(made), robot)  # type: ignore[arg-type]
    torch.testing.assert_close(batch.actions[..., 2], absolute.normalizer.normalize(recorded)[..., 2])


def test_the_formulas_are_the_published_ones() -> None:
    made, robot = episodes(1), arm()
    stats = statistics(made)
    actions = torch.from_numpy(made[0].actions)[:5]
    state = torch.from_numpy(made[0].state)[:1]
    delta = ActionTransform.from_statistics("delta", "meanstd", stats, robot)
    d = stats["action_delta"]
    by_hand = (actions[3, 0] - actions[2, 0] - d.mean[0]) / (d.std[0] + 1e-6)  # type: ignore[attr-defined]
    torch.testing.assert_close(delta.normalize_episode(actions)[3, 0], by_hand, atol=1e-5, rtol=1e-5)
    relative = ActionTransform.from_statistics("relative", "minmax", stats, robot)
    a, s = stats["action"], stats["state"]
    norm_a = 2 * (actions[3, 1] - a.q01[1]) / (a.q99[1] - a.q01[1] + 1e-6) - 1  # type: ignore[attr-defined]
    norm_s = 2 * (state[0, 2] - s.q01[2]) / (s.q99[2] - s.q01[2] + 1e-6) - 1  # type: ignore[attr-defined]
    got = relative.normalize_chunk(actions[None], state)[0, 3, 1]
    torch.testing.assert_close(got, norm_a - norm_s, atol=1e-5, rtol=1e-5)


def test_past_the_end_a_difference_is_zero() -> None:
    made, robot = episodes(1), arm()
    delta = ActionTransform.from_statistics("delta", "minmax", statistics(made), robot)
    rows = delta.normalize_episode(torch.from_numpy(made[0].actions))[None, -HORIZON:]
    padded = torch.zeros(1, HORIZON, dtype=torch.bool)
    padded[:, 5:] = True
    window = delta.normalize_window(rows, torch.zeros(1, 3), padded)
    still = delta.denormalize(window, torch.zeros(1, 3))
    torch.testing.assert_close(still[0, 5:, :2], still[0, 4:5, :2].expand(3, 2), atol=1e-5, rtol=1e-5)


def test_channels_without_a_state_are_named() -> None:
    robot = dataclasses.replace(arm(), state=(ChannelSpec(name="x"), ChannelSpec(name="elbow"), ChannelSpec(name="y")))
    with pytest.raises(ValueError, match=r"\['shoulder', 'elbow'\]; the state has \['x', 'elbow', 'y'\]"):
        ActionTransform.from_statistics("relative", "minmax", statistics(episodes(1)), robot)
    named = ActionTransform.from_statistics(
        "relative", "minmax", statistics(episodes(1)), robot, targets=("y", "elbow")
    )
    assert named.state_channels == (2, 1) and named.moving == (0, 1)
    with pytest.raises(ValueError, match="action_targets"):
        ActionTransform.from_statistics("delta", "minmax", statistics(episodes(1)), robot, targets=("y",))


def test_delta_needs_the_statistics_of_differences() -> None:
    stats = statistics(episodes(1))
    del stats["action_delta"]
    with pytest.raises(ValueError, match="wamkit data stats"):
        ActionTransform.from_statistics("delta", "minmax", stats, arm())  # type: ignore[arg-type]


@pytest.mark.parametrize("type", ["absolute", "delta", "relative"])
def test_a_saved_transform_is_the_same(type: str) -> None:
    stats = statistics(episodes(2))
    transform = ActionTransform.from_statistics(type, "meanstd", stats, arm())  # type: ignore[arg-type]
    state = Normalizer.from_statistics("meanstd", stats["state"])  # type: ignore[arg-type]
    again = ActionTransform.from_dict(transform.to_dict(), state=state)
    assert again == transform
    with pytest.raises(ValueError, match="another program"):
        ActionTransform.from_dict({**transform.to_dict(), "representation": "twisted"}, state=state)
