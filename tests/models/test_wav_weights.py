"""Published weights: random tensors written in every layout, loaded under every profile, and refused when damaged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wamkit.models.wav.config import NetworkConfig, tiny
from wamkit.models.wav.initial import empty_network, initialized
from wamkit.models.wav.layouts import ORIGINAL_PREFIX, official_name, open_weights
from wamkit.models.wav.load_policy import EXACT, PROFILES, LoadPolicy, group_of, recognize
from wamkit.models.wav.model import WAVTransformer
from wamkit.models.wav.weights import check_fit, load_weights
from wamkit.verify_weights import inspect_weights
from wamkit.weight_files import write_weights

from .wav_cases import NETWORK

NAMES = {  # ours, and those of the original single file
    "proj_in.": "patchify_proj.",
    "time_embed.": "adaln_single.",
    ".norm_q.": ".q_norm.",
    ".norm_k.": ".k_norm.",
}
HELD = {  # groups that a published source holds
    "ltx": {"video"},
    "ge_base": {"video", "view"},
    "ge_act": {"video", "view", "action"},
    "wav_video": {"video", "view"},
    "wav_value": {"video", "view", "value"},
    "exact": {"video", "view", "value", "action", "action.attn3"},
}


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Every tensor of a small network, with values that initialisation never gives."""
    state = initialized(empty_network(NETWORK), seed=7).state_dict()
    return {name: tensor + 3 for name, tensor in state.items()}


def held(published: dict[str, Tensor], profile: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in published.items() if group_of(name) in HELD[profile]}


def original(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Named as in LTX-Video's single file, an autoencoder beside them."""
    renamed = {"vae.encoder.conv_in.conv.weight": torch.zeros(2), "vae.decoder.conv_out.conv.bias": torch.ones(1)}
    for name, tensor in tensors.items():
        theirs = f".{name}"
        for mine, other in NAMES.items():
            theirs = theirs.replace(f".{mine.lstrip('.')}", f".{other.lstrip('.')}")
        renamed[ORIGINAL_PREFIX + theirs[1:]] = tensor
    return renamed


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def as_file(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    return write(tmp_path / "GE_base_fast_v0.1.safetensors", tensors)


def as_folder(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    """As the public trainer writes a step."""
    folder = tmp_path / "step_30000"
    write(folder / "diffusion_pytorch_model.safetensors", tensors)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


def as_shards(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    folder = tmp_path / "sharded"
    folder.mkdir()
    write_weights(folder, tensors, stem="diffusion_pytorch_model", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def as_index(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    return next(as_shards(tmp_path, tensors).glob("*.index.json"))


def as_pipeline(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    """As diffusers writes a whole pipeline."""
    root = tmp_path / "LTX-Video"
    write(root / "transformer" / "diffusion_pytorch_model.safetensors", tensors)
    write(root / "vae" / "diffusion_pytorch_model.safetensors", {"encoder.weight": torch.zeros(1)})
    (root / "model_index.json").write_text("{}", encoding="utf-8")
    return root


def as_original(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    return write(tmp_path / "ltx-video-2b-v0.9.safetensors", original(tensors))


@pytest.mark.parametrize("stored", [as_file, as_folder, as_shards, as_index, as_pipeline, as_original])
def test_ltx_loads_from_every_form(
    stored: Callable[[Path, dict[str, Tensor]], Path], published: dict[str, Tensor], tmp_path: Path
) -> None:
    tensors = held(published, "ltx")
    network = empty_network(NETWORK)
    report = load_weights(
        network, open_weights(stored(tmp_path, tensors)), source="LTX", policy=PROFILES["ltx"], seed=3
    )
    assert report.loaded == len(tensors) and set(report.missing) == {"view", "value", "action", "action.attn3"}
    assert report.left_out == (2 if stored is as_original else 0)
    fresh = initialized(empty_network(NETWORK), seed=3).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, tensors.get(name, fresh[name])), name


@pytest.mark.parametrize("profile", HELD)
def test_every_source_loads_under_its_profile_alone(profile: str, published: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = held(published, profile)
    source = open_weights(as_file(tmp_path, tensors))
    report = load_weights(empty_network(NETWORK), source, source="file", policy=PROFILES[profile])
    assert set(report.missing) == {group_of(name) for name in published} - HELD[profile]
    seen = recognize(tensors)
    assert seen is not None and HELD[seen] == HELD[profile]
    for other in PROFILES:
        if not set(PROFILES[profile].may_miss) <= set(PROFILES[other].may_miss):
            with pytest.raises(ValueError, match=rf"looks like '{seen}'.*train: --initial\.profile {seen}; verify"):
                check_fit(empty_network(NETWORK), source, source="file", policy=PROFILES[other])


def test_ge_act_may_have_other_action_channels(published: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = held(published, "ge_act")
    width = len(tensors["action_proj_in.weight"])
    tensors |= {"action_proj_in.weight": torch.zeros(width, 14), "action_proj_out.weight": torch.zeros(14, width)}
    tensors |= {"action_proj_out.bias": torch.zeros(14)}
    source = open_weights(as_file(tmp_path, tensors))
    report = load_weights(empty_network(NETWORK), source, source="GE-act", policy=PROFILES["ge_act"])
    assert report.reinitialized == ("action_proj_in.weight", "action_proj_out.bias", "action_proj_out.weight")
    assert "new (shape differs): action_proj_in.weight" in str(report)
    assert "new: value expert (" in str(report)
    with pytest.raises(ValueError, match=r"action_proj_in.weight: expected shape \(16, 7\), got \(16, 14\)"):
        check_fit(empty_network(NETWORK), source, source="GE-act", policy=EXACT)


@pytest.mark.parametrize(("read", "said"), [(False, "contents are read with --read"), (True, "found and read")])
def test_a_look_at_headers_says_so(tmp_path: Path, read: bool, said: str) -> None:
    network = initialized(empty_network(tiny().network), seed=0)
    found = str(inspect_weights(as_file(tmp_path, dict(network.state_dict())), "tiny", read=read))
    assert f"{len(network.state_dict())} tensors found" in found and said in found and "loaded" not in found


def test_a_missing_part_names_the_option_that_allows_it(published: dict[str, Tensor]) -> None:
    part = {name: tensor for name, tensor in published.items() if group_of(name) not in {"view", "action"}}
    assert recognize(part) is None
    with pytest.raises(ValueError, match=r"(?s)missing .*train: --initial\.profile NAME; .*NAME among exact, ltx, "):
        check_fit(empty_network(NETWORK), part, source="file", policy=EXACT)


def test_original_names_are_those_of_diffusers(published: dict[str, Tensor]) -> None:
    from diffusers.loaders.single_file_utils import convert_ltx_transformer_checkpoint_to_diffusers

    renamed = original(held(published, "ltx"))
    converted = convert_ltx_transformer_checkpoint_to_diffusers(dict(renamed))
    ours = {official_name(name): tensor for name, tensor in renamed.items() if not name.startswith("vae.")}
    assert set(ours) == set(converted) == set(held(published, "ltx"))
    assert all(torch.equal(ours[name], converted[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_are_cast(dtype: torch.dtype, published: dict[str, Tensor], tmp_path: Path) -> None:
    source = open_weights(as_file(tmp_path, {name: tensor.to(dtype) for name, tensor in published.items()}))
    network = empty_network(NETWORK)
    load_weights(network, source, source="file")
    kept = empty_network(NETWORK)
    load_weights(kept, source, source="file", dtype=torch.bfloat16)
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, published[name].to(dtype).float())
        assert torch.equal(kept.state_dict()[name], published[name].to(dtype).to(torch.bfloat16))


def test_loading_leaves_the_global_generator_and_optimisers_alone(published: dict[str, Tensor]) -> None:
    before = torch.get_rng_state()
    network = initialized(empty_network(NETWORK), seed=0)
    held_elsewhere = list(network.parameters())
    load_weights(network, published, source="memory")
    assert all(a is b for a, b in zip(network.parameters(), held_elsewhere, strict=True))
    published_name = next(iter(published))
    assert network.state_dict()[published_name].data_ptr() != published[published_name].data_ptr()
    empty = empty_network(NETWORK)
    load_weights(empty, published, source="memory")
    assert empty.state_dict()[published_name].data_ptr() != published[published_name].data_ptr()
    assert all(parameter.requires_grad for parameter in empty.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_values_are_those_of_torch() -> None:
    """The same bounds and spreads as the constructors of PyTorch's modules, which a tensor drawn by name must match."""
    wide = dataclasses.replace(NETWORK, num_heads=8, head_dim=32, num_layers=2)
    torch.manual_seed(0)
    theirs, ours = WAVTransformer(wide).state_dict(), initialized(empty_network(wide), seed=0).state_dict()
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape and ours[name].dtype == tensor.dtype
        if tensor.numel() >= 1000:
            assert ours[name].std() == pytest.approx(tensor.std().item(), rel=0.1, abs=1e-6), name
            assert ours[name].abs().max() == pytest.approx(tensor.abs().max().item(), rel=0.3), name
        assert torch.equal(ours[name], torch.ones_like(tensor)) == torch.equal(tensor, torch.ones_like(tensor)), name
    smaller = initialized(empty_network(dataclasses.replace(wide, value=None)), seed=0).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in smaller.items()), "values follow from names alone"


def without(tensors: dict[str, Tensor], gone: Iterable[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in set(gone)}


@pytest.mark.slow
def test_what_does_not_fit_is_refused_and_nothing_is_loaded(published: dict[str, Tensor], tmp_path: Path) -> None:
    values = [name for name in published if name.startswith("value_")]
    attn3 = [name for name in published if ".attn3." in name]
    nan = {**published, "proj_in.bias": torch.full((26,), float("nan"))}
    policy = LoadPolicy(holds="a test", may_miss=("value", "action"))
    cases: list[tuple[dict[str, Tensor], LoadPolicy, str]] = [
        (without(published, ["proj_in.weight"]), EXACT, "missing 1 of .* tensors of video: proj_in.weight"),
        (without(published, values), EXACT, "missing .* tensors of value: "),
        (without(published, values[:2]), policy, "group value is there only in part, 2 tensors missing"),
        (without(published, attn3), policy, "missing .* of action.attn3"),
        ({**published, "stranger": torch.zeros(1)}, EXACT, "1 foreign tensors: stranger"),
        ({**published, "proj_in.bias": torch.zeros(3)}, EXACT, r"proj_in.bias: expected shape \(26,\), got \(3,\)"),
        ({**published, "proj_in.bias": torch.zeros(26, dtype=torch.int64)}, EXACT, "got I64: proj_in.bias"),
        (
            {**published, "proj_in.bias": torch.zeros(26).to(torch.float8_e4m3fn)},
            EXACT,
            "of type F64, F32, F16, BF16, got F8_E4M3",
        ),
        (nan, EXACT, "NaN or infinity in 1 tensors: proj_in.bias"),
    ]
    for number, (tensors, allowed, message) in enumerate(cases):
        network = initialized(empty_network(NETWORK), seed=1)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        source = open_weights(write(tmp_path / f"{number}.safetensors", tensors))
        with pytest.raises(ValueError, match=message):
            load_weights(network, source, source="file", policy=allowed)
        assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(ValueError, match=r"unknown load policy \['values'\]"):
        LoadPolicy(holds="a test", may_miss=("values",))
    with pytest.raises(ValueError, match="unknown load policy"):
        EXACT.allowing(["proj_in"])


@pytest.mark.parametrize("keep", [4, 2000, -1])
def test_truncated_files_are_named(keep: int, published: dict[str, Tensor], tmp_path: Path) -> None:
    path = as_file(tmp_path, published)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"GE_base_fast_v0\.1\.safetensors is damaged or cut short"):
        open_weights(path)


def test_a_missing_shard_and_a_foreign_index_are_named(published: dict[str, Tensor], tmp_path: Path) -> None:
    folder = as_shards(tmp_path, published)
    index = next(folder.glob("*.index.json"))
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=lost.name):
        open_weights(folder)
    index.write_text(json.dumps({"weight_map": {"proj_in.weight": "../elsewhere"}}), encoding="utf-8")
    with pytest.raises(ValueError, match="weight_map"):
        open_weights(folder)
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_weights(tmp_path / "nowhere")


def test_published_sizes_load_their_own_layout_on_the_meta_device() -> None:
    """`libero`'s names under each profile: the shapes fit without a byte of weights."""
    from wamkit.models.wav.config import libero

    network = empty_network(libero().network)
    state = network.state_dict()
    counts = {profile: sum(group_of(name) in HELD[profile] for name in state) for profile in HELD}
    assert counts["ge_base"] == 718 and counts["ltx"] == 715 and counts["exact"] == 2420
    for profile, policy in PROFILES.items():
        tensors = {name: tensor for name, tensor in state.items() if group_of(name) in HELD[profile]}
        assert check_fit(network, tensors, source=profile, policy=policy).loaded == counts[profile]


def config_without_value() -> NetworkConfig:
    return dataclasses.replace(NETWORK, value=None)


def test_an_action_expert_without_values_is_a_network_of_its_own(published: dict[str, Tensor]) -> None:
    """GE-act's own architecture: no value expert, no attention to one."""
    network = empty_network(config_without_value())
    tensors = {name: tensor for name, tensor in published.items() if name in network.state_dict()}
    assert load_weights(network, tensors, source="GE-act").missing == {}
    assert recognize(tensors) == "ge_act"
