"""A policy in closed loop: memory, randomness, units, and what it refuses; on WAV `tiny` with random weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wamkit.checkpoint import read_policy
from wamkit.data.actions import ActionTransform
from wamkit.models.wav.family import WAV
from wamkit.planning.config import REFERENCE, SHRINK_ONLY, PlannerConfig
from wamkit.planning.config import WAV as WAV_PRESET
from wamkit.policy import Policy, load_policy
from wamkit.types import ActingPolicy, ActionChunk, InputError, Observation

from .policies import CONFIG, EPISODE, PLANNER, VIDEO, make_policy, watched


def act(policy: Policy, slots: list[int], rows: list[int], executed: int = 0, record: bool = False) -> ActionChunk:
    return policy.act(
        slots,
        video=VIDEO[rows],
        state=torch.from_numpy(EPISODE.state[rows]),
        task=[EPISODE.task] * len(slots),
        executed=[executed] * len(slots),
        record=record,
    )


def run(policy: Policy, slots: list[int], seeds: list[int], calls: int = 3) -> list[torch.Tensor]:
    policy.reset(slots, seeds=seeds)
    return [act(policy, slots, [4 * call + slot for slot in slots], executed=4).actions for call in range(calls)]


@pytest.mark.parametrize("planner", [None, PLANNER, dataclasses.replace(SHRINK_ONLY, iterations=2, num_videos=4)])
def test_an_episode_does_not_depend_on_its_neighbours(planner: PlannerConfig | None) -> None:
    policy = make_policy(planner)
    assert isinstance(policy, ActingPolicy)
    together = run(policy, [0, 1, 2], [10, 11, 12])
    for slot in range(3):
        alone = run(policy, [slot], [10 + slot])
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[slot], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", [WAV_PRESET, REFERENCE], ids=["wav", "reference"])
@pytest.mark.parametrize("changes", [{"iterations": 0}, {"iterations": 2, "keep_mean": 1.0, "keep_std": 1.0}])
def test_check_9a_a_planner_that_never_moves_is_the_plain_sampler(
    preset: PlannerConfig, changes: dict[str, float]
) -> None:
    config = dataclasses.replace(preset, num_videos=4, num_values=2, value_elites=0.25, **changes)
    for planned, plain in zip(run(make_policy(config), [0], [3]), run(make_policy(), [0], [3]), strict=True):
        torch.testing.assert_close(planned, plain, atol=1e-6, rtol=1e-6)


def test_draws_follow_from_the_seed_and_the_step() -> None:
    policy = make_policy()
    first, again, other = run(policy, [0], [3]), run(policy, [0], [3]), run(policy, [0], [4])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.allclose(first[0], other[0])
    policy.reset([0], seeds=[3])
    same_row = [act(policy, [0], [0]).actions for _ in range(2)]
    assert not torch.allclose(same_row[0], same_row[1]), "each control step has noise of its own"


def test_memory_changes_what_is_done_and_reset_clears_it() -> None:
    policy = make_policy()
    policy.reset([0, 1], seeds=[1, 1])
    act(policy, [0, 1], [0, 20])
    differing = act(policy, [0, 1], [10, 10], executed=4).actions
    assert not torch.allclose(differing[0], differing[1], atol=1e-6)
    policy.reset([0, 1], seeds=[1, 1])
    fresh = act(policy, [0, 1], [10, 10]).actions
    torch.testing.assert_close(fresh[0], fresh[1], atol=1e-6, rtol=1e-6)


def test_recording_tells_what_was_imagined_and_changes_no_action() -> None:
    policy = make_policy(PLANNER)
    policy.reset([0], seeds=[5])
    plain = act(policy, [0], [7])
    policy.reset([0], seeds=[5])
    recorded = act(policy, [0], [7], record=True)
    assert torch.equal(plain.actions, recorded.actions) and plain.imagined is None
    imagined = recorded.imagined
    assert imagined is not None and imagined.video is not None and imagined.value is not None
    assert imagined.video.shape == (1, 2, 9, 32, 32, 3) and imagined.video.dtype == torch.uint8
    assert imagined.video_steps == tuple(range(1, 10))
    assert imagined.value.shape == (1, CONFIG.action_horizon)
    assert imagined.scores is not None and imagined.scores.shape == (1, 2, 8)
    assert set(recorded.timing) == {"encode", "plan", "act"} and min(recorded.timing.values()) >= 0


def inputs(rows: list[int], executed: int = 0) -> dict[str, Any]:
    count = len(rows)
    state = torch.from_numpy(EPISODE.state[rows])
    return {"video": VIDEO[rows], "state": state, "task": [EPISODE.task] * count, "executed": [executed] * count}


def test_a_search_without_values_is_the_callers_error() -> None:
    config = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, value=None))
    policy = make_policy(config=config)
    run(policy, [0], [1], calls=1)
    with pytest.raises(InputError, match="no value expert, so there is nothing to plan by; leave the planner out"):
        run(policy.varied(planner=dataclasses.replace(PLANNER, denormalize_scores=False), num_steps=1), [0], [1])


@pytest.mark.parametrize("planner", [None, PLANNER])
def test_what_is_imagined_after_deciding_is_what_recording_shows(planner: PlannerConfig | None) -> None:
    policy = make_policy(planner)
    policy.reset([0, 1], seeds=[3, 3])
    for call in range(2):
        recorded = act(policy, [0], [4 * call], executed=4, record=True)
        decision = policy.decide([1], **inputs([4 * call], executed=4), value=call == 1)
        assert torch.equal(decision.chunk.actions, recorded.actions)
        imagined, wanted = decision.imagine(), recorded.imagined
        assert wanted is not None and imagined.video is not None and imagined.value is not None
        assert wanted.video is not None and torch.equal(imagined.video, wanted.video)
        assert wanted.value is not None and torch.equal(imagined.value, wanted.value)
        told = decision.chunk.imagined
        assert (told is not None) == (call == 1)
        if told is not None:
            assert told.value is not None and torch.equal(told.value, wanted.value) and told.video is None


def test_a_call_that_fails_leaves_the_episode_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, other = make_policy(), make_policy()
    for each in (policy, other):
        each.reset([0], seeds=[1])
        act(each, [0], [0])

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of memory"):
        patched.setattr(policy.transforms.action.__class__, "denormalize", broken)
        act(policy, [0], [8], executed=4)
    assert torch.equal(act(policy, [0], [4], executed=4).actions, act(other, [0], [4], executed=4).actions)


def test_a_variant_acts_for_the_same_robots() -> None:
    policy = make_policy()
    variant = policy.varied(planner=PLANNER, num_steps=5)
    policy.reset([0], seeds=[1])
    first, second = act(policy, [0], [0]), act(variant, [0], [4], executed=4)
    alone = make_policy(PLANNER).varied(planner=PLANNER, num_steps=5)
    alone.reset([0], seeds=[1])
    act(alone, [0], [0])
    assert torch.equal(act(alone, [0], [4], executed=4).actions, second.actions)
    assert not torch.equal(first.actions, second.actions)
    variant.forget([0, 7])
    with pytest.raises(ValueError, match="no episode"):
        act(policy, [0], [4])


@pytest.mark.parametrize("planner", [None, PLANNER])
def test_a_prediction_is_what_the_policy_would_do(planner: PlannerConfig | None) -> None:
    """With the frames that its memory would hold and the key of the call; no slot takes part."""
    policy = make_policy(planner)
    policy.reset([5], seeds=[11])
    for row in (0, 4, 8):
        chunk = act(policy, [5], [row], executed=4, record=True)
    assert chunk.imagined is not None and chunk.imagined.video is not None and chunk.imagined.value is not None
    observation = Observation(
        video=VIDEO[[4, 8]].transpose(0, 1)[None], state=torch.from_numpy(EPISODE.state[[8]]), task=[EPISODE.task]
    )
    prediction = make_policy(planner).predict(observation, keys=[(11, 2)])
    torch.testing.assert_close(prediction.actions, chunk.actions)
    assert prediction.value is not None and prediction.states is not None and prediction.sampled.future is not None
    torch.testing.assert_close(prediction.value, chunk.imagined.value)
    assert torch.equal(prediction.sampled.future, chunk.imagined.video)
    assert prediction.states.shape == (1, CONFIG.action_horizon, 3)
    normalized = prediction.sampled.states
    assert normalized is not None
    torch.testing.assert_close(policy.transforms.state.normalize(prediction.states), normalized)
    assert not torch.equal(policy.predict(observation, keys=[(11, 3)]).actions, prediction.actions)
    with pytest.raises(ValueError, match="expected 2 frames of every camera and a key for each observation"):
        policy.predict(dataclasses.replace(observation, video=observation.video[:, :, 1:]), keys=[(11, 2)])
    with pytest.raises(ValueError, match=r"expected state of shape \(1, 3\)"):
        policy.predict(dataclasses.replace(observation, state=torch.zeros(1, 4)), keys=[(11, 2)])


WARM = dataclasses.replace(PLANNER, warm_start=True, warm_start_std=0.9, keep_mean=0.2, keep_std=0.2)


def test_a_warm_start_goes_on_from_the_previous_call() -> None:
    cold = run(make_policy(dataclasses.replace(WARM, warm_start=False)), [0], [10])
    policy = make_policy(WARM)
    warm = run(policy, [0], [10])
    assert torch.equal(warm[0], cold[0]), "there is nothing to go on from in the first call"
    assert not torch.allclose(warm[1], cold[1], atol=1e-4)
    observation = Observation(
        video=VIDEO[[4, 8]].transpose(0, 1)[None], state=torch.from_numpy(EPISODE.state[[8]]), task=[EPISODE.task]
    )
    with pytest.raises(ValueError, match="knows no earlier call from which the planner's warm_start could go on"):
        policy.predict(observation, keys=[(0, 0)])
    again = run(policy, [0], [10])  # run begins with reset, which forgets
    assert all(torch.equal(one, other) for one, other in zip(warm, again, strict=True))


def test_a_warm_start_belongs_to_its_slot() -> None:
    """Slots that ask together, also when one of them has begun a new episode, get what they would get alone."""
    policy = make_policy(WARM)
    policy.reset([0, 1], seeds=[10, 11])
    together = [act(policy, [0, 1], [0, 1]).actions]
    policy.reset([1], seeds=[12])
    together += [act(policy, [1, 0], [5, 4], executed=4).actions.flip(0) for _ in range(2)]
    for slot, seeds in ((0, [10]), (1, [11, 12])):
        alone = make_policy(WARM)
        alone.reset([slot], seeds=seeds[:1])
        chunks = [act(alone, [slot], [slot]).actions]
        if len(seeds) > 1:
            alone.reset([slot], seeds=seeds[1:])
        chunks += [act(alone, [slot], [4 + slot], executed=4).actions for _ in range(2)]
        for one, both in zip(chunks, together, strict=True):
            torch.testing.assert_close(one[0], both[slot], atol=1e-5, rtol=1e-5)


def test_scores_can_be_in_the_units_of_the_values() -> None:
    policy = make_policy(dataclasses.replace(PLANNER, score="mean"))
    physical = make_policy(dataclasses.replace(PLANNER, score="mean", denormalize_scores=True))
    assert physical.transforms.value is not None
    far = dataclasses.replace(physical.transforms.value, mean=(1e6,) * physical.transforms.value.width)
    physical.transforms = dataclasses.replace(physical.transforms, value=far)
    seen = []
    for each in (policy, physical):
        each.reset([0], seeds=[1])
        imagined = act(each, [0], [0], record=True).imagined
        assert imagined is not None and imagined.scores is not None
        seen.append(imagined.scores)
    assert seen[0].abs().max() < 1e3 < seen[1].mean(), "value targets have a mean of a million"
    bare = dataclasses.replace(policy.transforms, value=None)
    with pytest.raises(ValueError, match="denormalize_scores needs the policy's value transform"):
        Policy(policy.model, policy.spec, bare, planner=physical.planner)


def test_actions_leave_in_physical_units() -> None:
    """Widening the statistics of the action widens the action by as much."""
    policy, wide = make_policy(), make_policy()
    normalizer = wide.transforms.action.normalizer
    doubled = dataclasses.replace(
        normalizer, q01=tuple(2 * x for x in normalizer.q01), q99=tuple(2 * x for x in normalizer.q99), epsilon=2e-6
    )
    wide.transforms = dataclasses.replace(wide.transforms, action=ActionTransform(normalizer=doubled))
    ours, theirs = run(policy, [0], [0], calls=1)[0], run(wide, [0], [0], calls=1)[0]
    torch.testing.assert_close(theirs, 2 * ours, atol=1e-5, rtol=1e-4)


def test_a_policy_comes_back_from_its_folder(tmp_path: Path) -> None:
    policy = make_policy()
    policy.save(tmp_path / "policy", config=CONFIG.to_dict(), training={"seed": 0})
    loaded = load_policy(tmp_path / "policy", num_steps=3, planner=None)
    assert loaded.spec == policy.spec and loaded.transforms == policy.transforms
    assert loaded.fingerprint == read_policy(tmp_path / "policy").fingerprint != ""
    for ours, theirs in zip(run(policy, [0], [2]), run(loaded, [0], [2]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_a_memory_with_a_stride_holds_the_frames_that_were_told() -> None:
    policy, model = watched(stride=1)
    policy.reset([0, 1], seeds=[1, 2])
    act(policy, [0, 1], [0, 10])
    policy.remember([1], video=VIDEO[[13]], executed=[3])
    assert policy.num_known([0, 1, 9], executed=[4, 1, 0]) == [1, 2, 1]
    policy.act([0, 1], **(inputs([4, 14]) | {"executed": [4, 1]}))
    assert model.known == [[[False, True]] * 2, [[False, True], [True, True]]]
    assert torch.equal(model.memories[0], VIDEO[torch.tensor([[0, 0], [10, 10]])])
    assert torch.equal(model.memories[1], VIDEO[torch.tensor([[4, 4], [13, 14]])])


def test_a_memory_of_calls_tells_what_it_has_seen() -> None:
    policy, model = watched(stride=None, num_context=3)
    policy.reset([0], seeds=[1])
    for row in (0, 4, 8):
        act(policy, [0], [row], executed=4)
    assert model.known == [[[False, False, True]], [[False, True, True]], [[True, True, True]]]
    assert torch.equal(model.memories[-1], VIDEO[torch.tensor([[0, 4, 8]])])


@pytest.mark.usefixtures("types_unchecked")  # a wrong shape is to reach the policy
def test_a_prediction_is_told_which_frames_were_seen() -> None:
    policy, model = watched(stride=1)
    observation = Observation(
        video=VIDEO[[4, 8]].transpose(0, 1)[None], state=torch.from_numpy(EPISODE.state[[8]]), task=[EPISODE.task]
    )
    policy.predict(observation, keys=[(0,)])
    policy.predict(dataclasses.replace(observation, known=torch.tensor([[False, True]])), keys=[(0,)])
    assert model.known == [None, [[False, True]]]
    for known in ([[True, False]], [[True]], [[True, True], [True, True]]):
        with pytest.raises(ValueError, match="expected known to say of 1 x 2 frames whether they were seen"):
            policy.predict(dataclasses.replace(observation, known=torch.tensor(known)), keys=[(0,)])


def test_a_threshold_has_no_effect_beside_a_stride() -> None:
    with pytest.raises(ValueError, match=r"memory_threshold 2 has no effect on this policy, .* 3 control steps apart"):
        watched(stride=3, memory_threshold=2)


def test_frames_that_cannot_be_remembered_leave_the_memory_as_it_was() -> None:
    policy, model = watched(stride=1)
    policy.reset([0], seeds=[1])
    act(policy, [0], [0])
    for wrong, message in (
        ({"video": VIDEO[[3]], "executed": [-1]}, "0 or more"),
        ({"video": VIDEO[[3], :1], "executed": [3]}, "expected video of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.remember([0], **wrong)  # type: ignore[arg-type]
    act(policy, [0], [1], executed=1)
    assert torch.equal(model.memories[-1], VIDEO[torch.tensor([[0, 1]])])


def test_wrong_input_is_explained() -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match=r"slots \[0\] have no episode; call reset"):
        act(policy, [0], [0])
    policy.reset([0], seeds=[0])
    good = {"video": VIDEO[:1], "state": torch.zeros(1, 3), "task": ["go"], "executed": [0]}
    for change, message in (
        ({"video": VIDEO[:1, :1]}, r"cameras front, wrist\), got \(1, 1, 32, 32, 3\)"),
        ({"video": VIDEO[:1, :, :16]}, r"got \(1, 2, 16, 32, 3\)"),
        ({"state": torch.zeros(1, 4)}, r"expected state of shape \(1, 3\) \(x, y, gripper_opening\), got \(1, 4\)"),
        ({"state": torch.tensor([[0.0, float("nan"), 0.0]])}, "finite states"),
        ({"executed": [-1]}, r"0 or more, got \[-1\]"),
        ({"task": ["go", "stay"]}, "slots .0., 2 tasks and 1 counts"),
        ({"task": []}, "0 tasks"),
    ):
        policy.reset([0], seeds=[0])
        policy.act([0], **good)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            policy.act([0], **(good | change))  # type: ignore[arg-type]


def test_a_planner_needs_a_value_expert(tmp_path: Path) -> None:
    bare = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, value=None))
    full = make_policy()
    model = WAV.build(bare, full.model.video_codec, full.model.text_encoder)
    policy = Policy(model, full.spec, dataclasses.replace(full.transforms, value=None))
    policy.save(tmp_path / "policy", config=bare.to_dict(), training={})
    assert torch.isfinite(run(load_policy(tmp_path / "policy", num_steps=2), [0], [1], calls=1)[0]).all()
    with pytest.raises(ValueError, match=r"no value expert.*--planner none \(planner=None in Python"):
        load_policy(tmp_path / "policy", planner=PLANNER)


def test_a_folder_with_foreign_or_missing_tensors_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    make_policy().save(tmp_path / "policy", config=CONFIG.to_dict(), training={})
    file = tmp_path / "policy" / "model.safetensors"
    tensors = load_file(file)
    for change, message in (
        ({"proj_in.weight": None}, "missing 1 of .*proj_in.weight"),
        ({"stranger": torch.zeros(1)}, "1 foreign tensors: stranger"),
        ({"proj_in.weight": torch.zeros(2, 2)}, "proj_in.weight: expected shape"),
    ):
        save_file({key: value for key, value in (tensors | change).items() if value is not None}, file)
        with pytest.raises(ValueError, match=message):
            load_policy(tmp_path / "policy")
    save_file(tensors, file)
    statistics = tmp_path / "policy" / "statistics.json"
    kept = json.loads(statistics.read_text())
    del kept["action"]
    statistics.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=r"statistics\.json: expected the keys state, action and value"):
        load_policy(tmp_path / "policy")
