"""A policy: a model behind its normalisation, memory and planner, as robots and evaluators use it.

Nothing here knows a family: a family encodes frames, opens a control step and decodes chunks (`types.Acting`).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from wamkit.checkpoint import PolicyFiles, read_policy, write_policy
from wamkit.chunking import ObservationMemory
from wamkit.data.images import fit_video
from wamkit.data.vectors import Transforms
from wamkit.device import clock
from wamkit.draws import SeededDraws
from wamkit.models import family_module
from wamkit.planning.cem import LatentProblem, Plan, plan
from wamkit.planning.config import PlannerConfig
from wamkit.planning.gaussian import Distributions
from wamkit.policy_inputs import check_actions, check_inputs, check_known, require_normal
from wamkit.spec import PolicySpec
from wamkit.typed import COPY_AGAIN, blame
from wamkit.types import (
    Acting,
    ActionChunk,
    ActionConditioned,
    Decoder,
    Imagined,
    InputError,
    Observation,
    Prediction,
    Sampled,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a policy decided, with what goes with it still to be imagined, by whoever has time for it.

    Args:
        chunk: the actions, and the values when asked for.
        imagine: imagines what `act(…, record=True)` would have given beside the same actions. It holds what the step
            was decided on, so let go of it soon.
    """

    chunk: ActionChunk
    imagine: Callable[[], Imagined]


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """One robot's episode."""

    memory: ObservationMemory
    seed: int
    calls: int = 0
    searched: Distributions | None = None  # where the last call's search ended


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A control step that is planned and not decoded yet."""

    slots: dict[int, _Slot]  # as they are when it succeeds
    control: Decoder
    draws: SeededDraws
    chosen: Plan | None
    state: Tensor
    timing: dict[str, float]


class Policy:
    """A `types.ActingPolicy` over any family that can act.

    Args:
        model: the family object.
        spec: what the policy needs and gives.
        transforms: normalisation.
        planner: how initial noise is chosen; `None` draws it.
        num_steps: Euler steps of the decoder.
        memory_threshold: executed actions per shift of the observation memory, where the spec has no `context_stride`.
        video_guidance: classifier-free guidance of imagined frames by the sentence; 1 is off. Actions know none.
        max_rows: imagined videos computed at once, which bounds memory.
        fingerprint: identity of the weights, for records.

    Raises:
        InputError: the planner wants scores in units that no transform tells.
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        model: Acting,
        spec: PolicySpec,
        transforms: Transforms,
        *,
        planner: PlannerConfig | None = None,
        num_steps: int = 10,
        memory_threshold: int = 1,
        video_guidance: float = 1.0,
        max_rows: int = 32,
        fingerprint: str = "",
    ):
        if planner is not None and planner.denormalize_scores and transforms.value is None:
            raise InputError(
                "the planner's denormalize_scores needs the policy's value transform, and it has none; train it with "
                "values, or use denormalize_scores=False"
            )
        if not 0 <= video_guidance < math.inf or max_rows < 1:
            raise ValueError(
                f"expected video_guidance of 0 or more and max_rows of 1 or more, got {video_guidance} and {max_rows}"
            )
        if spec.context_stride is not None and memory_threshold != 1:
            raise ValueError(
                f"memory_threshold {memory_threshold} has no effect on this policy, whose memory holds frames "
                f"{spec.context_stride} control steps apart; leave it out"
            )
        self.model = model
        self.spec = spec
        self.transforms = transforms
        self.planner = planner
        self.num_steps = num_steps
        self.memory_threshold = memory_threshold
        self.video_guidance = video_guidance
        self.max_rows = max_rows
        self.fingerprint = fingerprint
        self._slots: dict[int, _Slot] = {}

    def reset(self, slots: Sequence[int], *, seeds: Sequence[int]) -> None:
        """Start a new episode in each slot; every draw of the episode follows from its seed.

        Raises:
            ValueError: not one seed for each slot.
        """
        for slot, seed in zip(slots, seeds, strict=True):
            memory = ObservationMemory(self.spec.num_context, self.memory_threshold, stride=self.spec.context_stride)
            self._slots[slot] = _Slot(memory=memory, seed=seed)

    def forget(self, slots: Sequence[int]) -> None:
        """End the episode of each slot; slots without one are left alone."""
        for slot in slots:
            self._slots.pop(slot, None)

    def episodes(self, slots: Sequence[int]) -> dict[int, Any]:
        """The episode of each slot as it is now, for `restore`; `None` for one without."""
        return {slot: self._slots.get(slot) for slot in slots}

    def restore(self, episodes: Mapping[int, Any]) -> None:
        """Put back what `episodes` gave."""
        for slot, episode in episodes.items():
            if episode is None:
                self._slots.pop(slot, None)
            else:
                self._slots[slot] = episode

    @torch.inference_mode()
    def remember(self, slots: Sequence[int], *, video: UInt8[Tensor, "b v h w c"], executed: Sequence[int]) -> None:
        """Take frames into the slots' memories without acting, as when a robot tells what happened in between.

        A policy whose spec has a `context_stride` remembers frames that are told exactly so many control steps before
        the newest one, see `ObservationMemory`; other frames do no harm.

        Args:
            slots: each was `reset` before.
            video: newest frame of every camera, in the spec's camera order.
            executed: actions executed since the slot was told of a frame last.

        Raises:
            InputError: a slot that was never reset, or frames that do not fit the spec. As after every error, the
                slots are as before the call.
        """
        state = torch.zeros(len(slots), len(self.spec.robot.state))
        self._check(slots, video, state, [""] * len(slots), executed)
        frames = self.model.encode_frames(self.seen(video[:, :, None].to(self._device())))
        for row, (slot, count) in enumerate(zip(slots, executed, strict=True)):
            before = self._slots[slot]
            self._slots[slot] = dataclasses.replace(before, memory=before.memory.added(frames[row, :, :, 0], count))

    def num_known(self, slots: Sequence[int], *, executed: Sequence[int]) -> list[int]:
        """Frames that each slot's memory would hold in a call now, the newest among them; 1 for a slot without one.

        Args:
            slots: robots.
            executed: see `act`.
        """
        none, counts = ObservationMemory(self.spec.num_context), zip(slots, executed, strict=True)
        memories = [(self._slots[slot].memory if slot in self._slots else none, count) for slot, count in counts]
        return [memory.added(torch.zeros(()), count).num_known for memory, count in memories]

    def varied(self, *, planner: PlannerConfig | None, num_steps: int) -> Policy:
        """The same policy, with the same robots in its slots, that plans or decodes in another way.

        Raises:
            InputError: see `Policy`.
        """
        policy = Policy(
            self.model,
            self.spec,
            self.transforms,
            planner=planner,
            num_steps=num_steps,
            memory_threshold=self.memory_threshold,
            video_guidance=self.video_guidance,
            max_rows=self.max_rows,
            fingerprint=self.fingerprint,
        )
        policy._slots = self._slots
        return policy

    @torch.inference_mode()
    def act(
        self,
        slots: Sequence[int],
        *,
        video: UInt8[Tensor, "b v h w c"],
        state: Float[Tensor, "b s"],
        task: list[str],
        executed: Sequence[int],
        record: bool = False,
    ) -> ActionChunk:
        """One chunk for each slot.

        Args:
            slots: robots asking; each was `reset` before.
            video: newest frame of every camera, in the spec's camera order.
            state: physical units.
            task: one sentence per robot.
            executed: actions executed since the slot's previous call, or since a frame that it was told to `remember`.
            record: also return what was imagined.

        Raises:
            InputError: a slot that was never reset, or inputs that do not fit the spec. As after every error, the
                slots are as before the call.
        """
        step = self._begin(slots, video, state, task, executed)
        return self._finish(step, imagine=record)

    @torch.inference_mode()
    def decide(
        self,
        slots: Sequence[int],
        *,
        video: UInt8[Tensor, "b v h w c"],
        state: Float[Tensor, "b s"],
        task: list[str],
        executed: Sequence[int],
        value: bool = False,
    ) -> Decision:
        """`act`, for robots that cannot wait until what goes with the actions is imagined.

        Args:
            slots: see `act`, as all but the last.
            video: see `act`.
            state: see `act`.
            task: see `act`.
            executed: see `act`.
            value: also give the values, where the policy has them.

        Raises:
            InputError: see `act`.
        """
        step = self._begin(slots, video, state, task, executed)
        chunk = self._finish(step, value=value)
        return Decision(chunk=chunk, imagine=lambda: self._imagine(step))

    def _begin(
        self, slots: Sequence[int], video: Tensor, state: Tensor, task: Sequence[str], executed: Sequence[int]
    ) -> _Step:
        """Encode, remember and plan, with the slots as they were."""
        self._check(slots, video, state, task, executed)
        device = self._device()
        started = clock(device)
        frames = self.model.encode_frames(self.seen(video[:, :, None].to(device)))
        before = [self._slots[slot] for slot in slots]
        memories = [
            slot.memory.added(frames[row, :, :, 0], executed[row])  # newest frame, without its time axis
            for row, slot in enumerate(before)
        ]
        stacked = torch.stack([memory.stack(dim=2) for memory in memories])
        control = self._open(stacked, state, task, torch.tensor([memory.known for memory in memories]))
        draws = SeededDraws(keys=[(slot.seed, slot.calls) for slot in before], device=device)
        encoded = clock(device)
        chosen = self._plan(control, draws, [slot.searched for slot in before])
        after = []
        for row, (slot, memory) in enumerate(zip(before, memories, strict=True)):
            searched = slot.searched
            if chosen is not None and self.planner is not None and self.planner.warm_start:
                searched = chosen.distributions.row(row)
            after.append(_Slot(memory=memory, seed=slot.seed, calls=slot.calls + 1, searched=searched))
        timing = {"encode": encoded - started, "plan": clock(device) - encoded}
        return _Step(
            slots=dict(zip(slots, after, strict=True)),
            control=control,
            draws=draws,
            chosen=chosen,
            state=state.to(device),
            timing=timing,
        )

    def _finish(self, step: _Step, *, value: bool = False, imagine: bool = False) -> ActionChunk:
        """Decode the actions, and with them the step into the slots."""
        device = self._device()
        planned = clock(device)
        sampled = step.control.sample(
            step.draws, step.chosen, value=value, imagine=imagine, guidance=self.video_guidance
        )
        actions = self.transforms.action.denormalize(sampled.actions, step.state).cpu()
        timing = {**step.timing, "act": clock(device) - planned}
        imagined = self._imagined(sampled, step.chosen) if value or imagine else None
        self._slots.update(step.slots)
        return ActionChunk(actions=actions, imagined=imagined, timing=timing)

    @torch.inference_mode()
    def _imagine(self, step: _Step) -> Imagined:
        sampled = step.control.sample(step.draws, step.chosen, imagine=True, guidance=self.video_guidance)
        return self._imagined(sampled, step.chosen)

    @torch.inference_mode()
    def predict(self, observation: Observation, *, keys: Sequence[tuple[int, ...]]) -> Prediction:
        """What the policy expects to follow some observations, beside which what came can be set.

        No slot is read or changed: the memory is what `observation.video` holds. The same frames, state, sentence and
        key give what `act(…, record=True)` gives in a slot whose seed and call number make up that key.

        Args:
            observation: `spec.num_context` frames of every camera, the newest last, of the robot's size or already of
                the model's (`seen`, imagined frames), and which of them were seen; the newest frame's state, in
                physical units; a sentence each.
            keys: what each row's draws follow from, for instance (seed of the episode, number of the call).

        Raises:
            ValueError: inputs that do not fit the spec, or a planner that would go on from an earlier call.
        """
        if self.planner is not None and self.planner.warm_start:
            raise ValueError(
                "a prediction knows no earlier call from which the planner's warm_start could go on; switch it off "
                "(--planner-warm-start False, warm_start=False)"
            )
        if observation.video.shape[2] != self.spec.num_context or len(keys) != len(observation.video):
            raise ValueError(
                f"expected {self.spec.num_context} frames of every camera and a key for each observation, got video of "
                f"shape {tuple(observation.video.shape)} and {len(keys)} keys"
            )
        check_known(observation.known, (len(keys), self.spec.num_context))
        check_inputs(self.spec, observation.video[:, :, -1], observation.state, observation.task, fitted=True)
        device = self._device()
        memory = self.model.encode_frames(self.seen(observation.video.to(device)))
        control = self._open(memory, observation.state, observation.task, observation.known)
        draws = SeededDraws(keys=keys, device=device)
        chosen = self._plan(control, draws)
        sampled = control.sample(draws, chosen, imagine=True, guidance=self.video_guidance)
        states = None if sampled.states is None else self.transforms.state.denormalize(sampled.states).cpu()
        return Prediction(
            actions=self.transforms.action.denormalize(sampled.actions, observation.state.to(device)).cpu(),
            states=states,
            value=self._imagined(sampled, chosen).value,
            sampled=sampled,
        )

    @torch.inference_mode()
    def imagine_along(
        self, observation: Observation, actions: Float[Tensor, "b p a"], *, keys: Sequence[tuple[int, ...]]
    ) -> UInt8[Tensor, "b v p h w c"]:
        """The frames expected after each of some actions, each imagined from the one before; nothing is executed.

        Args:
            observation: as of `predict`.
            actions: physical units; one or more.
            keys: what each row's draws follow from.

        Raises:
            ValueError: a family that imagines nothing along given actions, or inputs that do not fit the spec.
        """
        model = self._world()
        check_inputs(self.spec, observation.video[:, :, -1], observation.state, observation.task, fitted=True)
        check_actions(self.spec, actions, len(keys))
        device = self._device()
        memory = model.encode_frames(self.seen(observation.video.to(device)))
        normalized = self.transforms.action.normalize_chunk(actions.to(device), observation.state.to(device))
        draws = SeededDraws(keys=keys, device=device)
        return model.imagine_along(
            memory, normalized, draws, max_rows=self.max_rows, guidance=self.video_guidance
        ).cpu()

    @torch.inference_mode()
    def reconstruct(self, video: UInt8[Tensor, "b v t h w c"]) -> UInt8[Tensor, "b v t y x c"]:
        """Frames encoded and decoded, each on its own: the best that imagined frames can be.

        Raises:
            ValueError: see `imagine_along`.
        """
        model = self._world()
        return model.decode_frames(model.encode_frames(self.seen(video.to(self._device())))).cpu()

    def _world(self) -> ActionConditioned:
        if not isinstance(self.model, ActionConditioned):
            raise ValueError(
                f"family {self.spec.family!r} imagines no frames along given actions; what it imagines beside its own "
                "is compared by `wamkit imagine` and `wamkit openloop`"
            )
        return self.model

    def seen(self, video: UInt8[Tensor, "*n h w 3"]) -> UInt8[Tensor, "*n y x 3"]:
        """Camera frames as the model sees them: of the size and in the way of training; imagined frames are alike."""
        return fit_video(video, size=self.spec.image_size, preprocess=self.spec.preprocess)

    def _open(self, memory: Tensor, state: Tensor, task: Sequence[str], known: Bool[Tensor, "b t"] | None) -> Decoder:
        normalized = self.transforms.state.normalize(state).to(memory.device)
        require_normal(normalized)
        known = None if known is None else known.to(memory.device)
        return self.model.control_step(
            memory, normalized, list(task), self.num_steps, max_rows=self.max_rows, known=known
        )

    def _plan(
        self, control: Decoder, draws: SeededDraws, previous: Sequence[Distributions | None] | None = None
    ) -> Plan | None:
        if self.planner is None:
            return None
        if not isinstance(control, LatentProblem):
            raise InputError(
                f"family {self.spec.family!r} has no latent noise to plan over; use --planner none (planner=None in "
                "Python)"
            )
        value = self.transforms.value
        denormalize = None if value is None else value.denormalize
        return plan(control, self.planner, draws, denormalize=denormalize, previous=previous)

    def _imagined(self, sampled: Sampled, chosen: Plan | None) -> Imagined:
        value = sampled.value
        if value is not None and self.transforms.value is not None:
            value = self.transforms.value.denormalize(value)
        scores = None
        if chosen is not None and chosen.rounds:
            scores = torch.stack([seen.scores.flatten(1) for seen in chosen.rounds], dim=1).cpu()
        return Imagined(
            video=None if sampled.future is None else sampled.future.cpu(),
            video_steps=sampled.future_steps,
            value=None if value is None else value[..., -1].cpu(),
            scores=scores,
        )

    def _check(
        self, slots: Sequence[int], video: Tensor, state: Tensor, task: Sequence[str], executed: Sequence[int]
    ) -> None:
        """Refuse a call before any slot's memory has changed."""
        if not len(task) == len(executed) == len(slots) or len(set(slots)) != len(slots):
            raise InputError(
                f"expected one task and one count of executed actions for each of some distinct slots, got slots "
                f"{list(slots)}, {len(task)} tasks and {len(executed)} counts"
            )
        if min(executed, default=0) < 0:
            raise InputError(f"expected counts of executed actions of 0 or more, got {list(executed)}")
        unknown = [slot for slot in slots if slot not in self._slots]
        if unknown:
            raise InputError(f"slots {unknown} have no episode; call reset(slots, seeds=…) first")
        check_inputs(self.spec, video, state, task)

    def _device(self) -> torch.device:
        return getattr(self.model, "device", torch.device("cpu"))

    def save(
        self,
        path: Path,
        *,
        config: Mapping[str, Any],
        training: Mapping[str, Any],
        weights: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Write a policy folder, see `checkpoint.write_policy`; `weights` stand in for the network's own."""
        return write_policy(
            path,
            family=self.spec.family,
            network=self.model.network if weights is None else weights,
            config=config,
            spec=self.spec,
            statistics=self.transforms.to_dict(),
            training=training,
            write_codecs=self.model.save_codecs,
        )


def read_settings(files: PolicyFiles) -> tuple[Any, Transforms]:
    """The family's configuration and the normalisation of a policy folder, held to its spec; no weights are read.

    Args:
        files: of the folder.

    Raises:
        ValueError: a file holds something else, or the files do not fit each other; the message names the file.
    """
    with blame(files.folder / "config.json", COPY_AGAIN):
        config = family_module(files.family).FAMILY.read_config(files.config)
    robot = files.spec.robot
    with blame(f"{files.folder}: spec.json does not fit config.json", COPY_AGAIN):
        config.check_spec(files.spec)
    with blame(files.folder / "statistics.json", COPY_AGAIN):
        transforms = Transforms.from_dict(files.statistics)
    with blame(f"{files.folder}: statistics.json does not fit config.json and spec.json", COPY_AGAIN):
        transforms.check_widths(state=len(robot.state), action=len(robot.action), value=config.value_channels)
    return config, transforms


def load_policy(
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    planner: PlannerConfig | None = None,
    max_rows: int = 32,
    video_guidance: float = 1.0,
    num_steps: int = 10,
    memory_threshold: int = 1,
    dtype: torch.dtype | None = None,
    pretrained: Path | None = None,
) -> Policy:
    """Load a policy from its folder alone.

    Args:
        folder: a policy folder or a training checkpoint.
        device: where it computes.
        planner: see `Policy`.
        max_rows: see `Policy`.
        video_guidance: see `Policy`.
        num_steps: see `Policy`.
        memory_threshold: see `Policy`.
        dtype: type that the network computes in, whatever its weights are stored as; float32 when `None`.
        pretrained: where pretrained codecs (`vae/`, `text_encoder/`, `tokenizer/`) lie, when that is not where they lay
            in training.

    Raises:
        FileNotFoundError: no folder, or a file of it is missing.
        ValueError: a file is damaged, or weights, configuration and codecs do not fit each other.
    """
    files = read_policy(folder)
    config, transforms = read_settings(files)
    if planner is not None and not config.value_channels:
        raise ValueError(
            f"{folder} has no value expert, so there is nothing to plan by; use --planner none (planner=None in Python)"
        )
    model = family_module(files.family).FAMILY.load(
        config, files.open_weights(), files.codecs, source=str(folder), dtype=dtype, pretrained=pretrained
    )
    files.check_codecs()
    model.to(device)
    model.network.eval()
    return Policy(
        model,
        files.spec,
        transforms,
        planner=planner,
        max_rows=max_rows,
        video_guidance=video_guidance,
        num_steps=num_steps,
        memory_threshold=memory_threshold,
        fingerprint=files.fingerprint,
    )
