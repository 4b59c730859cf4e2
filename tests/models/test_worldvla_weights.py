"""Published layouts both ways, beside a straightforward evaluation and the standard classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from wamkit.masks import causal_mask
from wamkit.models.worldvla import config as sizes
from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.models.worldvla.network import empty_network
from wamkit.models.worldvla.weights import check_fit, inspect_weights, load_weights, open_weights, write_published

from .worldvla_cases import make_case


def random_state(config: WorldVLAConfig, *, norm_rows: int, seed: int = 0) -> dict[str, Tensor]:
    """A random state dict as the reference stores it: (rows, head width) query and key norms."""
    draws = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in empty_network(config).state_dict().items():
        shape = tensor.shape
        if ".q_norm." in name or ".k_norm." in name:
            shape = torch.Size((norm_rows, shape[1]))
        scale = 1.0 if "embed" in name else tensor.shape[-1] ** -0.5
        state[name] = scale * torch.randn(shape, generator=draws)
        if "norm" in name and name.endswith("weight"):
            state[name] = 1 + 0.3 * torch.randn(shape, generator=draws)
    return state


def straightforward(state: dict[str, Tensor], config: WorldVLAConfig, ids: Tensor) -> Tensor:
    """Logits `l v` of one sequence, written down from WorldVLA 2.1 of the specification, head by head."""
    network = config.network
    heads, width = network.num_heads, network.dim // network.num_heads
    x = state["model.embed_tokens.weight"][ids]
    length = len(ids)
    frequency = network.rope_base ** (-torch.arange(0, width, 2).double() / width)
    angle = torch.arange(length).double()[:, None] * frequency
    cos, sin = angle.cos().float(), angle.sin().float()

    def normed(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + network.norm_eps).sqrt() * state[name]

    def turned(x: Tensor) -> Tensor:
        first, second = x[:, : width // 2], x[:, width // 2 :]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=1)

    for layer in range(network.num_layers):
        at = f"model.layers.{layer}"
        y = normed(x, f"{at}.input_layernorm.weight")
        outputs = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            parts = {}
            for which in "qk":
                z = y @ state[f"{at}.self_attn.{which}_proj.weight"][own].T
                z = (z - z.mean(dim=1, keepdim=True)) / (z.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
                gains, biases = (state[f"{at}.self_attn.{which}_norm.{kind}"] for kind in ("weight", "bias"))
                row = head * len(gains) // heads
                parts[which] = turned(z * gains[row] + biases[row])
            scores = parts["q"] @ parts["k"].T / width**0.5
            scores = scores.masked_fill(~causal_mask(length), -torch.inf)
            outputs.append(scores.softmax(dim=-1) @ (y @ state[f"{at}.self_attn.v_proj.weight"][own].T))
        x = x + torch.cat(outputs, dim=1) @ state[f"{at}.self_attn.o_proj.weight"].T
        y = normed(x, f"{at}.post_attention_layernorm.weight")
        gate = F.silu(y @ state[f"{at}.mlp.gate_proj.weight"].T) * (y @ state[f"{at}.mlp.up_proj.weight"].T)
        x = x + gate @ state[f"{at}.mlp.down_proj.weight"].T
    return normed(x, "model.norm.weight") @ state["lm_head.weight"].T


@pytest.mark.parametrize("norm_rows", [1, 2, 4])
def test_logits_of_reference_shaped_weights(norm_rows: int, tmp_path: Path) -> None:
    """Check 9: (1, k) query and key norms load, logits agree to 1e-5, image logits are not masked."""
    config = sizes.tiny()
    state = random_state(config, norm_rows=norm_rows)
    save_file(state, tmp_path / "model.safetensors")
    network = empty_network(config)
    report = load_weights(network, open_weights(tmp_path), source="reference")
    assert report.repeated == (0 if norm_rows == 4 else 4 * 3)
    ids = torch.randint(16400, (40,), generator=torch.Generator().manual_seed(1))
    expected = straightforward(state, config, ids)
    network.eval()
    with torch.inference_mode():
        found = network.logits(network(ids[None], causal_mask(40)[None, None]))[0]
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    image = found[:, 4:8196]
    assert (image.min() < image.max()) and not (image == image.min()).float().mean() > 0.5


def test_the_standard_classes_agree(tmp_path: Path) -> None:
    """Written in the standard layout and read by the standard library's Chameleon."""
    transformers = pytest.importorskip("transformers")
    config = sizes.tiny()
    case = make_case(config)
    folder = write_published(case.network, tmp_path / "published")
    network = config.network
    settings = transformers.ChameleonConfig(
        vocab_size=network.vocab_size,
        hidden_size=network.dim,
        intermediate_size=network.mlp_dim,
        num_hidden_layers=network.num_layers,
        num_attention_heads=network.num_heads,
        num_key_value_heads=network.num_heads,
        rms_norm_eps=network.norm_eps,
        model_parallel_size=network.num_heads,
        swin_norm=False,
        vq_config={"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 8},
        vocabulary_map={"<image>": 1},
    )
    standard = transformers.ChameleonModel(settings)
    state = {
        name.removeprefix("model."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name != "lm_head.weight"
    }
    missing, unexpected = standard.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("vqmodel.") for name in missing)
    ids = torch.randint(5, 16000, (2, 30), generator=torch.Generator().manual_seed(0))
    standard.eval()
    with torch.inference_mode():
        theirs = standard(input_ids=ids).last_hidden_state
        ours = case.network(ids, causal_mask(30)[None, None].expand(2, 1, 30, 30))
    assert torch.allclose(theirs, ours, atol=2e-5)


@pytest.mark.parametrize("norm_rows", [None, 1])
def test_both_ways(norm_rows: int | None, tmp_path: Path) -> None:
    config = sizes.tiny(has_head=True)
    case = make_case(config)
    folder = write_published(case.network, tmp_path / "published", norm_rows=norm_rows)
    stored = load_file(folder / "model.safetensors")
    assert len(stored["model.layers.0.self_attn.q_norm.weight"]) == (norm_rows or 4)
    network = empty_network(config)
    load_weights(network, open_weights(folder), source="published")
    for name, tensor in case.network.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_heads_that_differ_cannot_share_a_row(tmp_path: Path) -> None:
    case = make_case()
    with torch.no_grad():
        case.network.model.layers[0].self_attn.q_norm.weight[1] = 2.0  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match="write one row per head"):
        write_published(case.network, tmp_path / "published", norm_rows=1)
    assert not (tmp_path / "published").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="is there"):
        write_published(case.network, tmp_path / "there")


def test_starting_from_chameleon(tmp_path: Path) -> None:
    """Image logits start from zero, the head is fresh, the tokeniser's tensors in the file are left out."""
    config = sizes.tiny(has_head=True)
    state = random_state(sizes.tiny(), norm_rows=1)
    save_file(state | {"model.vqmodel.encoder.conv_in.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    network = empty_network(config)
    ids = make_case(config).vocabulary.image
    report = load_weights(network, open_weights(tmp_path), source="here", profile="chameleon", image_ids=ids, seed=3)
    assert report.left_out == 1 and report.fresh == len(network.state_dict()) - len(state)
    assert "continuous action head" in report.told("loaded") and "image tokeniser" in report.told("loaded")
    assert not network.lm_head.weight[4:8196].any()
    assert torch.equal(network.lm_head.weight[8196:], state["lm_head.weight"][8196:])


def test_queries_stored_as_an_embedding(tmp_path: Path) -> None:
    case = make_case(sizes.tiny(has_head=True))
    state = dict(case.network.state_dict())
    state["action_head.queries"] = state["action_head.queries"].reshape(1, -1).clone()
    save_file(state, tmp_path / "model.safetensors")
    network = empty_network(case.config)
    load_weights(network, open_weights(tmp_path), source="here")
    assert torch.equal(network.state_dict()["action_head.queries"], case.network.state_dict()["action_head.queries"])


def test_weights_that_do_not_fit() -> None:
    config = sizes.tiny()
    state = random_state(config, norm_rows=1)
    network = empty_network(config)
    for change, message in (
        ({"lm_head.weight": state["lm_head.weight"][:-3]}, r"expected shape \(16400, 64\), got \(16397, 64\)"),
        ({"model.extra": torch.zeros(2)}, r"1 foreign tensors: model\.extra"),
        ({"model.norm.weight": torch.zeros(64, dtype=torch.long)}, "1 tensors that are no floats"),
        ({"model.layers.0.self_attn.q_norm.weight": torch.zeros(3, 16)}, "q_norm.weight: expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            check_fit(network, state | change, source="here")
    with pytest.raises(ValueError, match=r"1 missing tensors: model\.norm\.weight"):
        check_fit(network, {name: item for name, item in state.items() if name != "model.norm.weight"}, source="here")
    with pytest.raises(ValueError, match="expected a profile"):
        check_fit(network, state, source="here", profile="wan")
    headed = empty_network(sizes.tiny(has_head=True))
    with pytest.raises(ValueError, match=r"missing tensors: action_head"):
        check_fit(headed, state, source="here")
    check_fit(headed, state, source="here", profile="transformer")
    spoilt = state | {"model.norm.weight": torch.full((64,), torch.nan)}
    with pytest.raises(ValueError, match="NaN or infinity in 1 tensors"):
        load_weights(network, spoilt, source="here")
    assert all(tensor.is_meta for tensor in network.state_dict().values())


def test_what_weights_are(tmp_path: Path) -> None:
    config = sizes.tiny()
    save_file(random_state(config, norm_rows=1), tmp_path / "model.safetensors")
    found = inspect_weights(config, tmp_path, read=True)
    assert found.fits and found.layout == "Chameleon" and "12 query and key norms" in str(found)
    other = dataclasses.replace(config, network=dataclasses.replace(config.network, vocab_size=16500))
    assert not inspect_weights(other, tmp_path).fits


def test_the_published_size_on_the_meta_device() -> None:
    network = empty_network(sizes.libero())
    assert sum(item.numel() for item in network.parameters()) == 7_013_666_816
    state = network.state_dict()
    assert state["model.layers.31.self_attn.q_norm.weight"].shape == (32, 128)
    assert state["model.embed_tokens.weight"].shape == state["lm_head.weight"].shape == (65536, 4096)
    head = empty_network(sizes.rynnvla()).state_dict()
    assert head["action_head.queries"].shape == (35, 4096)
    assert head["action_head.input_proj.weight"].shape == (1024, 4096)
    assert head["action_head.output.fc1.weight"].shape == (1024, 7168)
