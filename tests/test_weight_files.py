"""Tensors on disk: what is written is read back, and what does not fit is listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wamkit.weight_files import load_state, read_weights, weight_files, write_weights


def network(seed: int = 0, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_large_and_tied_weights_come_back_from_shards(tmp_path: Path, dtype: torch.dtype | None) -> None:
    tied = nn.Linear(40, 40)
    tensors = {"a": torch.randn(40, 40), "b": tied.weight, "c": tied.weight, "d": torch.randn(40, 40).T, "e": tied.bias}
    write_weights(tmp_path, tensors, dtype=dtype, max_shard_size="7KB")
    assert len(weight_files(tmp_path)) > 1
    expected = {name: tensor.detach().to(dtype or torch.float32) for name, tensor in tensors.items()}
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert same(read_weights(source), expected)
    size = sum(file.stat().st_size for file in weight_files(tmp_path))
    assert size < (4 if dtype is None else 2) * (3 * 1600 + 40) + 2000, "the tied weight is stored once"


def test_weights_are_found_in_a_file_or_a_folder_with_one(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3)}
    write_weights(tmp_path, tensors, stem="ltx-video")
    assert same(read_weights(tmp_path / "ltx-video.safetensors"), tensors)
    assert same(read_weights(tmp_path), tensors)
    write_weights(tmp_path, {"b": torch.zeros(1)}, stem="other")
    with pytest.raises(ValueError, match=r"several weight files.*ltx-video.*other"):
        read_weights(tmp_path)
    write_weights(tmp_path, {"c": torch.zeros(1)}, stem="diffusion_pytorch_model")
    assert list(read_weights(tmp_path)) == ["c"], "the usual name wins"


def test_pickles_and_foreign_paths_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="pickled"):
        read_weights(tmp_path / "model.bin")
    with pytest.raises(FileNotFoundError, match=r"model.bin"):
        read_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="found nothing"):
        read_weights(tmp_path / "nothing.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for table in ({"a": "../outside.safetensors"}, {}, {"a": 3}):
        index.write_text(json.dumps({"weight_map": table}))
        with pytest.raises(ValueError, match="same folder"):
            read_weights(index)
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="model-00001-of-00002"):
        read_weights(index)


def test_load_state_lists_every_kind_of_misfit_and_changes_nothing() -> None:
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    tensors = {name: torch.full_like(tensor, 3) for name, tensor in before.items()}
    load_state(target, tensors, "good.safetensors")
    assert same(dict(target.state_dict()), tensors)
    load_state(target, before, "good.safetensors")
    del tensors["0.bias"]
    tensors["2.weight"] = torch.zeros(2, 7)
    tensors |= {f"action_blocks.{number}.weight": torch.zeros(1) for number in range(20)}
    with pytest.raises(ValueError) as caught:
        load_state(target, tensors, "foreign.safetensors")
    message = str(caught.value)
    assert "foreign.safetensors" in message and "1 missing: 0.bias [6]" in message
    assert "1 of another shape: 2.weight: expected [2, 6], got [2, 7]" in message
    assert "20 unexpected" in message and message.count("action_blocks") == 8 and "…" in message
    assert "Build the network" in message
    assert same(dict(target.state_dict()), before)
