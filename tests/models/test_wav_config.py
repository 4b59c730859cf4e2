"""Sizes of WAV: what cannot be built is refused by the name of the number, before anything is built."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from wamkit.data.synthetic import synthetic_robot
from wamkit.models.wav.config import CodecConfig, ExpertConfig, WAVConfig, dualarm, libero, small, tiny
from wamkit.spec import PolicySpec


@pytest.mark.parametrize("make", [libero, dualarm, small, tiny])
def test_a_size_survives_json(make: Any) -> None:
    assert WAVConfig.from_dict(json.loads(json.dumps(make().to_dict()))) == make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "network: expected num_heads of 1 or more, got 0"),
        ({"num_layers": 0}, "network: expected num_layers of 1 or more, got 0"),
        ({"head_dim": -4}, "network: expected head_dim of 1 or more, got -4"),
        ({"latent_channels": 0}, "network: expected latent_channels of 1 or more"),
        ({"text_width": 0}, "network: expected text_width of 1 or more"),
        ({"max_view": -1}, "network: expected max_view of 0 or more"),
        ({"cross_view_every": -1}, "network: expected cross_view_every of 0 or more"),
        ({"norm_eps": 0.0}, "network: expected a positive norm_eps"),
        ({"norm_eps": float("nan")}, "network: expected norm_eps as a finite number, got NaN"),
        ({"num_layers": True}, "network: expected num_layers as a whole number, got true"),
        ({"num_heads": 1, "head_dim": 5}, r"network: expected an even num_heads \* head_dim, got 1 \* 5 = 5"),
    ],
)
def test_impossible_networks_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny().network, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, "expert: expected channels of 1 or more"),
        ({"num_heads": 0}, "expert: expected num_heads of 1 or more"),
        ({"head_dim": 0}, "expert: expected head_dim of 1 or more"),
        ({"rope_base": -1.0}, "expert: expected a positive rope_base, got -1.0"),
        ({"rope_base": float("inf")}, "expert: expected rope_base as a finite number, got Infinity"),
        ({"num_heads": 3, "head_dim": 3}, "expert: expected an even num_heads"),
    ],
)
def test_impossible_experts_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertConfig(**{"channels": 4, **change})


@pytest.mark.parametrize("name", ["spatial", "temporal", "text_length"])
def test_impossible_codecs_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"codec: expected {name} of 1 or more, got 0"):
        CodecConfig(**{name: 0})


@pytest.mark.parametrize(
    "name", ["num_views", "image_size", "num_context", "num_future", "action_horizon", "action_dim"]
)
def test_impossible_windows_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"model: expected {name} of 1 or more, got 0"):
        dataclasses.replace(tiny(), **{name: 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_context": 3}, r"2 frames of memory \(num_context\), got 3"),
        ({"action_horizon": 18}, r"9 actions in a chunk \(action_horizon\), got 18"),
        ({"robot": synthetic_robot().with_cameras(("front",))}, r"2 cameras \(num_views\), got 1"),
        ({"robot": synthetic_robot(height=64, width=32)}, r"\(image_size\), got \[\(64, 32\), \(64, 32\)\]"),
        ({"image_size": (64, 64), "preprocess": "resize"}, r"\(image_size\), got \[\(64, 64\)\]"),
    ],
)
def test_a_spec_of_other_sizes_is_refused(change: dict[str, Any], message: str) -> None:
    config = tiny(action_dim=3, state_dim=3)
    spec = PolicySpec(
        family="wav",
        robot=synthetic_robot(),
        num_context=2,
        action_horizon=9,
        execution_horizon=4,
        normalization="minmax",
    )
    config.check_spec(spec)
    resized = dataclasses.replace(spec, robot=synthetic_robot(height=64, width=48), image_size=(32, 32))
    config.check_spec(dataclasses.replace(resized, preprocess="resize"))
    with pytest.raises(ValueError, match=message):
        config.check_spec(dataclasses.replace(spec, **change))
