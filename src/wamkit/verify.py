"""Evaluate golden cases: recorded weights, inputs and draws, against recorded outputs of another implementation.

The format (one safetensors file with a JSON beside it) holds, per case, weights (`w.*`), inputs (`in.*`), outputs of
single calls (`out.*`) and of the sampler and planner with every Gaussian draw recorded (`pipe.*`). Model sizes, view
counts, step counts and planner settings are read from the JSON, so any case of the format can be evaluated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor

from wamkit.flow import euler
from wamkit.models.wav.config import ExpertConfig, NetworkConfig
from wamkit.models.wav.control import ControlStep
from wamkit.models.wav.experts import ExpertTokens
from wamkit.models.wav.initial import empty_network
from wamkit.models.wav.model import TextContext, WAVTransformer
from wamkit.models.wav.weights import load_weights
from wamkit.nn.modulation import Timesteps
from wamkit.planning.cem import plan
from wamkit.planning.config import REFERENCE, Pairing, PlannerConfig


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One compared tensor.

    Args:
        name: `case/tensor`.
        error: largest absolute error; for index sets, how many elements the two sets do not share.
        limit: largest error the tolerance allows at the worst element, or 0 for index sets.
        passed: whether every element is within atol + rtol · |expected|.
        is_index_set: elite indices, compared as sets.
    """

    name: str
    error: float
    limit: float
    passed: bool
    is_index_set: bool = False


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """|got - expected| <= atol + rtol · |expected|."""

    atol: float
    rtol: float


@dataclass(frozen=True, kw_only=True)
class GoldenCase:
    """One case: its settings and tensors without the case prefix."""

    name: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    tolerances: dict[str, Tolerance]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under a prefix, without it."""
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}


def read_cases(path: Path, spec: Path | None = None) -> list[GoldenCase]:
    """Read a golden file and its JSON.

    Args:
        path: the safetensors file.
        spec: its JSON; by default the file of the same name beside it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not of the golden format.
    """
    spec = spec or path.with_suffix(".json")
    for file in (path, spec):
        if not file.is_file():
            raise FileNotFoundError(f"expected a golden file at {file}; name the JSON with --spec if it lies elsewhere")
    try:
        settings = json.loads(spec.read_text())
        cases, tolerances = settings["cases"], settings["precision"]["suggested_tolerance"]
        limits = {group: _tolerance(tolerances[group]) for group in ("out", "pipe")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{spec} is not the JSON of a golden file (expected keys cases, precision): {error}"
        ) from error
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # safetensors raises its own type, not a subclass of a builtin one
        raise ValueError(f"{path} is not a readable safetensors file: {error}; copy it again") from error
    if not cases:
        raise ValueError(f"{spec} describes no case")
    stray = sorted({key.split("/")[0] for key in tensors} - set(cases))
    if stray:
        raise ValueError(f"{path} holds tensors of {stray}, which {spec} does not describe; are they a pair?")
    read = []
    for name, case in cases.items():
        own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        if not any(key.startswith("w.") for key in own):
            raise ValueError(f"{path} holds no weights for case {name!r} that {spec} describes; are they a pair?")
        read.append(GoldenCase(name=name, settings=case, tensors=own, tolerances=limits))
    return read


def _tolerance(text: str) -> Tolerance:
    """Parse `atol 2e-5, rtol 1e-4 (…)`."""
    words = text.replace(",", " ").replace("(", " ").split()
    return Tolerance(atol=float(words[words.index("atol") + 1]), rtol=float(words[words.index("rtol") + 1]))


def network_config(model: dict[str, Any]) -> NetworkConfig:
    """Translate the reference's model configuration.

    Raises:
        ValueError: a setting that changes the architecture has a value this network does not have.
    """
    fixed = {"patch_size": 1, "patch_size_t": 1, "activation_fn": "gelu-approximate", "attention_bias": True}
    fixed |= {"attention_out_bias": True, "qk_norm": "rms_norm_across_heads", "norm_elementwise_affine": False}
    for key, only in fixed.items():
        if model.get(key, only) != only:
            raise ValueError(f"golden case: expected {key} = {only!r}, got {model[key]!r}")

    def expert(name: str, base: float) -> ExpertConfig | None:
        if not model.get(f"{name}_expert"):
            return None
        return ExpertConfig(
            channels=model[f"{name}_in_channels"],
            num_heads=model[f"{name}_num_attention_heads"],
            head_dim=model[f"{name}_attention_head_dim"],
            rope_base=base,
        )

    return NetworkConfig(
        latent_channels=model["in_channels"],
        num_layers=model["num_layers"],
        num_heads=model["num_attention_heads"],
        head_dim=model["attention_head_dim"],
        text_width=model["caption_channels"],
        max_view=model["max_view"] if model.get("use_view_embed", True) else 0,
        norm_eps=model.get("norm_eps", 1e-6),
        value=expert("value", 57.0),
        action=expert("action", 54.0),
    )


@dataclass(frozen=True, kw_only=True)
class RecordedDraws:
    """A planner's draws read from a golden file (one observation)."""

    tensors: dict[str, Tensor]

    def __call__(self, stream: str, shape: Sequence[int]) -> Tensor:
        """The recorded numbers of a stream, in the planner's layout."""
        name = stream.replace("iteration", "iter") if "." in stream else f"final.{stream}"
        recorded = self.tensors[name]
        if name == "final.video":  # all frames are recorded; those of memory are overwritten and not asked for
            recorded = recorded[..., -shape[-3] :, :, :]
        return recorded.reshape(1, *shape)


def evaluate(case: GoldenCase) -> list[Comparison]:
    """Evaluate one case and compare every `out.*` and `pipe.*` tensor that is not a recorded draw or an input.

    Raises:
        ValueError: a setting or tensor of the case is missing, or has a value that this network does not have.
    """
    try:
        return _evaluate(case)
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"golden case {case.name}: a setting or tensor is missing or malformed ({error!r})") from error


def _evaluate(case: GoldenCase) -> list[Comparison]:
    network = empty_network(network_config(case.settings["model"])).eval()
    load_weights(network, case.group("w."), source=f"golden case {case.name}")
    recorded = [
        key
        for key in case.tensors
        if key.startswith(("out.", "pipe.")) and ".noise." not in key and key != "pipe.memory_latents"
    ]
    if not recorded:
        raise ValueError(f"golden case {case.name} holds no out.* or pipe.* tensor to compare with")
    with torch.no_grad():
        produced = {f"out.{key}": value for key, value in single_calls(network, case).items()}
        if any(key.startswith("pipe.") for key in recorded):
            produced |= {f"pipe.{key}": value for key, value in pipeline(network, case).items()}
    return [_compare(f"{case.name}/{key}", produced.get(key), case.tensors[key], case.tolerances) for key in recorded]


def _compare(name: str, got: Tensor | None, expected: Tensor, tolerances: dict[str, Tolerance]) -> Comparison:
    if got is None or got.numel() != expected.numel():
        return Comparison(name=name, error=math.inf, limit=0.0, passed=False)
    if not expected.is_floating_point():
        unshared = len(set(got.flatten().tolist()) ^ set(expected.flatten().tolist()))
        return Comparison(name=name, error=float(unshared), limit=0.0, passed=unshared == 0, is_index_set=True)
    tolerance = tolerances[name.split("/")[1].split(".")[0]]
    error = (got.reshape(expected.shape) - expected).abs()
    limit = tolerance.atol + tolerance.rtol * expected.abs()
    worst = int((error / limit).argmax())
    passed = bool((error <= limit).all())
    return Comparison(name=name, error=float(error.max()), limit=float(limit.flatten()[worst]), passed=passed)


def single_calls(network: WAVTransformer, case: GoldenCase) -> dict[str, Tensor]:
    """The `out.*` tensors: each stream at the recorded timesteps, and again with cached features."""
    given, views = case.group("in."), case.settings["views"]
    grid = (case.settings["mem"] + case.settings["future"], case.settings["height"], case.settings["width"])
    text = network.read_text(given["text"], given["text_mask"], keep=True)
    video = rearrange(given["latents_packed"], "(b v) l c -> b v l c", v=views)
    told = rearrange(given["video_timestep"], "(b v) l -> b v l", v=views)
    if not (told == told[:, :1]).all():
        raise ValueError(f"golden case {case.name}: expected the same timesteps in all views of an observation")
    told = told[:, 0]
    noisy = 1 - rearrange(given["cond_mask"], "(b v) l -> b v l", v=views)[:, 0]

    out = {}
    hidden, out["video"] = _video(network, video, Timesteps.per_token(told), text, grid)
    _, out["video_t1000"] = _video(network, video, Timesteps.per_token(noisy * 1000), text, grid)
    out |= {f"video_hidden.{i}": rearrange(x, "b v l d -> (b v) l d") for i, x in enumerate(hidden)}
    flat = [rearrange(x, "b v l d -> b (v l) d") for x in hidden]
    out = {
        key: rearrange(x, "b v l c -> (b v) l c") if key.startswith("video") and x.ndim == 4 else x
        for key, x in out.items()
    }

    def tokens(name: str, scale: float = 1.0) -> ExpertTokens:
        told = given[f"{name}_timestep"]
        if not (told == told[:, :1]).all():
            raise ValueError(f"golden case {case.name}: expected one timestep for all {name} tokens of an observation")
        state = given.get("history_action_state") if name == "action" else None
        return ExpertTokens(tokens=given[name], timestep=told[:, 0] * scale, state_token=state)

    value_hidden: list[Tensor] = []
    if network.config.value is not None:
        kept = [network.value.keep_video(i, x) for i, x in enumerate(flat)]
        out["value"], value_hidden = network.value.run(tokens("value"), kept, keep=True)
        out |= {f"value_hidden.{i}": x for i, x in enumerate(value_hidden)}
        # the value stream is cached as a whole: only its head sees the halved timestep
        out["value_cached_step"] = _frozen_value_head(network, value_hidden[-1], tokens("value", 0.5))
    if network.config.action is not None:
        action = network.action
        kept = [action.keep_video(i, x) for i, x in enumerate(flat)]
        values = action.keep_value(value_hidden) if value_hidden else None
        out["action"] = action.run(tokens("action"), kept, values)[0]
        out["action_no_value"] = action.run(tokens("action"), kept)[0]
        out["action_cached_step"] = action.run(tokens("action", 0.5), kept, values)[0]
    return out


def _video(
    network: WAVTransformer, video: Tensor, timesteps: Timesteps, text: TextContext, grid: tuple[int, int, int]
) -> tuple[list[Tensor], Tensor]:
    modulation = network.video_modulation(timesteps, video.shape[1])
    hidden = list(network.video_layers(video, modulation, text, network.rotation(grid)))
    return hidden, network.video_head(hidden[-1], modulation)


def _frozen_value_head(network: WAVTransformer, hidden: Tensor, given: ExpertTokens) -> Tensor:
    """The value head applied to kept hidden states at another timestep, as the public sampler does after its first
    step.
    """
    value = network.value
    timesteps = Timesteps.uniform(given.timestep, given.tokens.shape[1])
    return value.head(hidden, value.modulation(timesteps))


def pipeline(network: WAVTransformer, case: GoldenCase) -> dict[str, Tensor]:
    """The `pipe.*` tensors: the sampler without planning, and the planner with both candidate pairings."""
    given, pipe, settings = case.group("in."), case.group("pipe."), case.settings
    text = network.read_text(given["text"][:1], given["text_mask"][:1], keep=True)
    state = given.get("history_action_state")
    control = ControlStep(
        network,
        memory=pipe["memory_latents"][None],
        num_future_latents=settings["future"],
        value_length=settings["value_len"],
        text=text,
        state_token=None if state is None else state[:1],
        num_steps=settings["planner"]["denoise_steps"],
        max_rows=3,  # a golden run also checks the micro-batches
    )
    out: dict[str, Tensor] = {}
    noise = case.group("pipe.plain.noise.")
    video = control.with_memory(noise["video"][None, None])[:, 0]
    out |= _decode(control, "plain", video, noise["value"], noise["action"])

    draws = case.group("pipe.plan.noise.")
    explore = settings["planner"]["explore_config"]
    pairings: tuple[tuple[str, Pairing], ...] = (("plan", "reference"), ("planfixed", "matched"))
    for name, pairing in pairings:
        config = _recorded_elites(replace(planner_config(explore), pairing=pairing), pipe, name)
        result = plan(control, config, RecordedDraws(tensors=draws))
        for k, seen in enumerate(result.rounds):
            scores = "snr_as_scored" if pairing == "reference" else "snr"
            out[f"{name}.iter{k}.{scores}"] = seen.scores
            out[f"{name}.iter{k}.video_score"] = seen.video_scores
            out[f"{name}.iter{k}.value_elite_idx"] = seen.value_elites
            out[f"{name}.iter{k}.video_elite_idx"] = seen.video_elites
        for kind in ("video", "value"):
            distribution = getattr(result.distributions, kind)
            out[f"{name}.final.{kind}_mean"] = distribution.mean
            out[f"{name}.final.{kind}_std"] = distribution.std
        out |= _decode(control, name, result.video, result.value, draws["action"])
    return out


def _recorded_elites(config: PlannerConfig, pipe: dict[str, Tensor], name: str) -> PlannerConfig:
    """As many elites as were recorded: ceil(fraction · count) depends on how the product was rounded."""
    videos, values = (pipe.get(f"{name}.iter0.{kind}_elite_idx") for kind in ("video", "value"))
    if videos is None or values is None:
        return config
    return replace(
        config,
        video_elites=(videos.numel() - 0.5) / config.num_videos,
        value_elites=(values.numel() - 0.5) / (config.num_videos * config.num_values),
    )


def _decode(control: ControlStep, name: str, video: Tensor, value: Tensor, action: Tensor) -> dict[str, Tensor]:
    """Actions as decoded; the value as the public sampler reports it (its head on the hidden states of the first
    step).
    """
    decoded = control.decode(video, action_noise=action, value_noise=value)
    kept = control.features(video, value=True, action=False).value
    level = torch.full((1,), 1000.0)
    _, hidden = control.network.value.run(ExpertTokens(tokens=value, timestep=level), kept, keep=True)

    def velocity(x: Tensor, sigma: float) -> Tensor:
        return _frozen_value_head(control.network, hidden[-1], ExpertTokens(tokens=x, timestep=level * sigma))

    return {f"{name}.out.action": decoded.actions, f"{name}.out.value": euler(value, velocity, control.sigmas)}


def planner_config(explore: dict[str, Any]) -> PlannerConfig:
    """The reference's planner settings under our names.

    Raises:
        ValueError: a setting is missing.
    """
    names = {
        "explore_steps": "iterations",
        "dynamic_groups": "num_videos",
        "value_groups": "num_values",
        "sigma_decay": "std_decay",
        "dynamic_elites": "video_elites",
        "value_elites": "value_elites",
    }
    missing = [name for name in (*names, "alpha_smooth") if name not in explore]
    if missing:
        raise ValueError(f"explore_config: expected {[*names, 'alpha_smooth']}, got {sorted(explore)}")
    ours = {names[key]: value for key, value in explore.items() if key in names}
    return replace(REFERENCE, **ours, keep_mean=explore["alpha_smooth"], keep_std=explore["alpha_smooth"])
