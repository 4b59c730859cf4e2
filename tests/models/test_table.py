"""The table of families: each says and does what commands, recipes and policies ask of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wamkit.model_config import ModelConfig
from wamkit.models import FAMILIES, family_module


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown model family 'wave'; known families are \['wav'"):
        family_module("wave")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_size_says_what_is_asked_of_it(name: str) -> None:
    family = family_module(name).FAMILY
    for size, make in family.SIZES.items():
        config = make()
        assert isinstance(config, ModelConfig) and config.family == name and config.name == size
        assert family.read_config(json.loads(json.dumps(config.to_dict()))) == config
        assert config.parts and json.loads(json.dumps(config.codec_record())) == config.codec_record()
        assert config.future_stride >= 1 and (config.context_stride is None or config.context_stride >= 1)
    tiny = family.SIZES["tiny"](num_views=2, action_dim=3, state_dim=3)
    assert (tiny.num_views, tiny.action_dim, tiny.state_dim) == (2, 3, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_verbs(name: str) -> None:
    family = family_module(name).FAMILY
    on_the_class = ("fit_codecs", "create", "check_initial", "inspect", "read_config", "load", "cache_encoder")
    on_the_object = ("parts", "loss", "encode_frames", "control_step", "save_codecs", "to", "with_weights", "validate")
    missing = [verb for verb in on_the_class + on_the_object if not callable(getattr(family, verb, None))]
    assert not missing and hasattr(family, "device")


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_something_else_are_refused(name: str, tmp_path: Path) -> None:
    family = family_module(name).FAMILY
    config, path = family.SIZES["tiny"](), tmp_path / "weights.safetensors"
    save_file({"stranger": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="stranger"):
        family.check_initial(config, path, profile="exact", may_resize=())
    found = family.inspect(config, path)
    assert not found.fits and "stranger" in found.problem and found.report is None and found.model == config.name
    with pytest.raises(FileNotFoundError):
        family.check_initial(config, tmp_path / "nowhere", profile="exact", may_resize=())
    for verb in (family.check_initial, family.inspect):
        with pytest.raises(ValueError, match="profile") as refused:
            verb(config, path, profile="nothing", may_resize=())
        assert "'nothing'" in str(refused.value) and "exact" in str(refused.value)
