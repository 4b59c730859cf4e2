"""The published layout of Chameleon's VQ-GAN, on random weights: read, written back, moved, and refused by name."""

import builtins
import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from wamkit.codecs.image_vq import VQImageTokenizer
from wamkit.codecs.image_vq_config import VQConfig
from wamkit.codecs.image_vq_network import VQNetwork, initialized
from wamkit.codecs.image_vq_weights import read_vqgan_yaml
from wamkit.draws import seeded

SMALL = VQConfig(base_width=32, multipliers=(1, 2), num_blocks=2, latent_channels=12, code_width=8, num_codes=50)
PUBLISHED_YAML = """
model:
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 256
    n_embed: 8192
    ddconfig:
      double_z: false
      z_channels: 256
      resolution: 512
      in_channels: 3
      out_ch: 3
      ch: 128
      ch_mult: [1, 1, 2, 2, 4]
      num_res_blocks: 2
      attn_resolutions: []
      dropout: 0.0
    lossconfig:
      target: taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator
      params: {disc_start: 100001}
"""


class Refused:
    """An object of a class of its own, as training frameworks put them into checkpoints."""


def small_yaml() -> dict[str, Any]:
    settings = yaml.safe_load(PUBLISHED_YAML)
    params = settings["model"]["params"]
    params |= {"embed_dim": 8, "n_embed": 50}
    params["ddconfig"] |= {"z_channels": 12, "ch": 32, "ch_mult": [1, 2]}
    return settings


def frames() -> Tensor:
    return torch.randint(0, 256, (2, 16, 12, 3), dtype=torch.uint8, generator=seeded("frames"))


@pytest.fixture(scope="module")
def tokenizer() -> VQImageTokenizer:
    network = initialized(SMALL, seeded(0))
    network.quantize.embedding.weight.data.mul_(0.5)
    return VQImageTokenizer(network)


@pytest.fixture(scope="module")
def state(tokenizer: VQImageTokenizer) -> dict[str, Tensor]:
    return dict(tokenizer.network.state_dict())


@pytest.fixture
def folder(state: dict[str, Tensor], tmp_path: Path) -> Path:
    """A download of WorldVLA, as far as images go."""
    place = tmp_path / "download" / "chameleon" / "tokenizer"
    place.mkdir(parents=True)
    loss = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(4, 3)}
    torch.save({"state_dict": {**state, **loss}, "global_step": 3}, place / "vqgan.ckpt")
    (place / "vqgan.yaml").write_text(yaml.safe_dump(small_yaml()))
    return place


def same(found: VQImageTokenizer, wanted: VQImageTokenizer) -> bool:
    codes = wanted.encode(frames())
    assert len(codes.unique()) > 3
    return torch.equal(found.encode(frames()), codes) and torch.equal(found.decode(codes), wanted.decode(codes))


def test_names_are_the_published_ones() -> None:
    with torch.device("meta"):
        names = set(VQNetwork(VQConfig.published()).state_dict())

    def both(*stems: str) -> set[str]:
        return {f"{stem}.{part}" for stem in stems for part in ("weight", "bias")}

    def block(stem: str, shortcut: bool = False) -> set[str]:
        parts = ("norm1", "conv1", "norm2", "conv2", *(("nin_shortcut",) if shortcut else ()))
        return both(*(f"{stem}.{part}" for part in parts))

    wanted = {"quantize.embedding.weight", *both("quant_conv", "post_quant_conv")}
    for tower in ("encoder", "decoder"):
        wanted |= both(f"{tower}.conv_in", f"{tower}.norm_out", f"{tower}.conv_out")
        wanted |= block(f"{tower}.mid.block_1") | block(f"{tower}.mid.block_2")
        wanted |= both(*(f"{tower}.mid.attn_1.{part}" for part in ("norm", "q", "k", "v", "proj_out")))
    for level in range(5):
        for index in range(2):
            wanted |= block(f"encoder.down.{level}.block.{index}", shortcut=index == 0 and level in (2, 4))
        for index in range(3):
            wanted |= block(f"decoder.up.{level}.block.{index}", shortcut=index == 0 and level in (3, 1))
    wanted |= both(*(f"encoder.down.{level}.downsample.conv" for level in range(4)))
    wanted |= both(*(f"decoder.up.{level}.upsample.conv" for level in range(1, 5)))
    assert names == wanted


@pytest.mark.parametrize("where", ["", "..", "../..", "vqgan.ckpt"])
def test_checkpoint_is_found_and_read(folder: Path, tokenizer: VQImageTokenizer, where: str) -> None:
    if where == "..":  # the folder between is no place to give
        with pytest.raises(FileNotFoundError, match=r"expected the VQ-GAN's weights at .*vqgan\.ckpt or \.safetensors"):
            VQImageTokenizer.from_pretrained(folder / where)
        return
    loaded = VQImageTokenizer.from_pretrained(folder / where)
    assert loaded.config == SMALL
    assert same(loaded, tokenizer)


def test_the_same_tensors_as_safetensors(folder: Path, state: dict[str, Tensor], tokenizer: VQImageTokenizer) -> None:
    (folder / "vqgan.ckpt").unlink()
    save_file({**state, "loss.logvar": torch.zeros(1)}, folder / "vqgan.safetensors")
    assert same(VQImageTokenizer.from_pretrained(folder), tokenizer)
    (folder / "vqgan.yaml").unlink()
    assert same(VQImageTokenizer.from_pretrained(folder, config=SMALL), tokenizer)
    with pytest.raises(ValueError, match="do not fit the network"):
        VQImageTokenizer.from_pretrained(folder)  # no settings: the published sizes


@pytest.mark.parametrize("prefix", ["model.vqmodel.", "vqmodel.", ""])
def test_chameleon_of_hugging_face_has_the_encoder_half(
    state: dict[str, Tensor], tokenizer: VQImageTokenizer, tmp_path: Path, prefix: str
) -> None:
    half = {f"{prefix}{name}": tensor for name, tensor in state.items() if not name.startswith("decoder.")}
    rest = {"model.embed_tokens.weight": torch.zeros(3, 2)} if prefix else {}
    save_file({**half, **rest}, tmp_path / "model.safetensors")
    loaded = VQImageTokenizer.from_pretrained(tmp_path, config=SMALL)
    assert torch.equal(loaded.encode(frames()), tokenizer.encode(frames()))
    with pytest.raises(ValueError, match=r"expected VQ-GAN weights with a decoder.*load vqgan\.ckpt"):
        loaded.decode(loaded.encode(frames()))
    with pytest.raises(ValueError, match="with its decoder"):
        loaded.to_published(tmp_path / "published")
    loaded.save(tmp_path / "codec")
    again = VQImageTokenizer.load(tmp_path / "codec")
    assert not again.config.has_decoder and torch.equal(again.encode(frames()), tokenizer.encode(frames()))
    del half[f"{prefix}quant_conv.bias"]
    save_file(half, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: quant_conv\.bias"):
        VQImageTokenizer.from_pretrained(tmp_path, config=SMALL)


def test_written_in_the_published_layout_and_read_again(tokenizer: VQImageTokenizer, tmp_path: Path) -> None:
    tokenizer.to_published(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["vqgan.ckpt", "vqgan.yaml"]
    content = torch.load(tmp_path / "vqgan.ckpt", weights_only=True)
    assert content.keys() == {"state_dict"} and content["state_dict"].keys() == tokenizer.network.state_dict().keys()
    written, small = yaml.safe_load((tmp_path / "vqgan.yaml").read_text()), small_yaml()["model"]["params"]
    del small["lossconfig"]
    assert written == {"model": {"params": small}}
    loaded = VQImageTokenizer.from_pretrained(tmp_path)
    assert loaded.config == SMALL
    assert same(loaded, tokenizer)


def test_half_precision_is_read_into_float32(folder: Path, state: dict[str, Tensor]) -> None:
    torch.save({"state_dict": {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}}, folder / "x.ckpt")
    loaded = VQImageTokenizer.from_pretrained(folder / "x.ckpt")
    assert {parameter.dtype for parameter in loaded.network.parameters()} == {torch.float32}


def test_saved_tokenizer_refers_to_its_weights(folder: Path, tokenizer: VQImageTokenizer, tmp_path: Path) -> None:
    VQImageTokenizer.from_pretrained(folder).save(tmp_path / "codec")
    assert [item.name for item in (tmp_path / "codec").iterdir()] == ["config.json"]
    (folder / "vqgan.yaml").unlink()  # the saved settings say all of it
    assert same(VQImageTokenizer.load(tmp_path / "codec"), tokenizer)
    (tmp_path / "download").rename(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match=r"vqgan\.ckpt.*say where they are now"):
        VQImageTokenizer.load(tmp_path / "codec")
    moved = tmp_path / "new" / "chameleon" / "tokenizer"
    for place in (tmp_path / "new", moved, moved / "vqgan.ckpt"):
        assert same(VQImageTokenizer.load(tmp_path / "codec", pretrained=place), tokenizer)
    content = torch.load(moved / "vqgan.ckpt", weights_only=True)
    torch.save({"state_dict": {**content["state_dict"], "loss.more": torch.zeros(9)}}, moved / "vqgan.ckpt")
    with pytest.raises(ValueError, match="not the file that this policy was trained with"):
        VQImageTokenizer.load(tmp_path / "codec", pretrained=moved)


def test_weights_of_another_name_are_found_where_they_moved(folder: Path, tmp_path: Path) -> None:
    (folder / "vqgan.ckpt").rename(folder / "mine.ckpt")
    VQImageTokenizer.from_pretrained(folder / "mine.ckpt").save(tmp_path / "codec")
    folder.rename(tmp_path / "new")
    assert VQImageTokenizer.load(tmp_path / "codec", pretrained=tmp_path / "new").config == SMALL


def test_unusable_checkpoints_are_refused(folder: Path, state: dict[str, Tensor]) -> None:
    path = folder / "vqgan.ckpt"

    def refuse(content: object, message: str, **how: Any) -> None:
        torch.save(content, path, **how)
        with pytest.raises(ValueError, match=message):
            VQImageTokenizer.from_pretrained(path)

    first, *others = state
    spoilt = {**state, first: torch.full_like(state[first], float("nan"))}
    refuse({"state_dict": {name: state[name] for name in others}}, rf"1 missing: {re.escape(first)} \[")
    refuse({"state_dict": {**state, "encoder.extra": torch.zeros(2)}}, r"1 unexpected: encoder\.extra \[2\]")
    refuse(
        {"state_dict": {**state, first: torch.zeros(2)}}, rf"1 of another shape: {re.escape(first)}: expected .* \[2\]"
    )
    refuse({"state_dict": spoilt}, rf"expected finite weights, got NaN or infinity in {re.escape(first)}")
    refuse({"state_dict": {**state, "loss.step": 3}}, "tensors under 'state_dict', got other values among them")
    refuse({"model": state, "epoch": 1}, "expected tensors under 'state_dict', got the keys model, epoch")
    refuse([1], "expected tensors under 'state_dict', got list")
    refuse({"state_dict": state, "x": Refused()}, r"other objects than tensors \(.*Refused\), which can run code")
    refuse({"state_dict": state}, "damaged, or older than torch 1.6", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state}, path)
    content = path.read_bytes()
    for damaged in (b"", b"<html>not found</html>", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged, or older .*download vqgan\.ckpt again"):
            VQImageTokenizer.from_pretrained(path)
    with pytest.raises(FileNotFoundError, match="expected the VQ-GAN's weights"):
        VQImageTokenizer.from_pretrained(folder / "nowhere.ckpt")
    path.rename(folder / "vqgan.bin")
    with pytest.raises(ValueError, match="pickled files"):
        VQImageTokenizer.from_pretrained(folder / "vqgan.bin")


def test_nothing_in_a_checkpoint_is_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[object] = []

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return builtins.eval, ("1 + 1",)

    torch.save({"state_dict": {}, "callbacks": Trap()}, folder / "vqgan.ckpt")
    monkeypatch.setattr(builtins, "eval", lambda *given: ran.append(given))
    with pytest.raises(ValueError, match=r"other objects than tensors \(.*eval\)"):
        VQImageTokenizer.from_pretrained(folder)
    assert not ran


def test_published_settings() -> None:
    assert VQConfig.published() == VQConfig()
    assert dataclasses.asdict(VQConfig.tiny(num_codes=9)) == {
        "base_width": 32,
        "multipliers": (1, 1, 1, 1, 1),
        "num_blocks": 1,
        "latent_channels": 32,
        "code_width": 16,
        "num_codes": 9,
        "has_decoder": True,
    }
    assert VQConfig.tiny().num_codes == 8192 and VQConfig.tiny().spatial == 16


def test_settings_are_read_and_other_architectures_refused(tmp_path: Path) -> None:
    path = tmp_path / "vqgan.yaml"
    path.write_text(PUBLISHED_YAML)
    assert read_vqgan_yaml(path) == VQConfig.published()
    settings = yaml.safe_load(PUBLISHED_YAML)

    def read(part: str, /, **changes: Any) -> VQConfig:
        changed = copy.deepcopy(settings)
        params = changed["model"]["params"]
        (params if part == "params" else params["ddconfig"]).update(changes)
        path.write_text(yaml.safe_dump(changed))
        return read_vqgan_yaml(path)

    assert read("ddconfig", ch=64, dropout=0.1, resolution=256).base_width == 64
    assert read("ddconfig", attn_resolutions=[16]) == VQConfig.published()  # no level has sides of 16 at 512 px
    assert read("params", n_embed=1024, embed_dim=4) == VQConfig(num_codes=1024, code_width=4)
    for part, changes, message in (
        ("ddconfig", {"double_z": True}, "expected double_z of False, as this network is built, got True"),
        ("ddconfig", {"in_channels": 4}, "expected in_channels of 3"),
        ("ddconfig", {"attn_type": "linear"}, "expected attn_type of vanilla"),
        ("ddconfig", {"attn_resolutions": [32]}, r"no attention but in the middle.*got attn_resolutions \[32\]"),
        ("ddconfig", {"attn_resolutions": [16], "resolution": 256}, r"attn_resolutions \[16\]"),
        ("ddconfig", {"ch": "128"}, "expected ch as a whole number"),
        ("ddconfig", {"ch_mult": 4}, "expected ch_mult as a list"),
        ("ddconfig", {"ch": 130}, "can group"),
        ("ddconfig", {"fancy": 1}, "unknown setting fancy"),
        ("params", {"remap": "used.npy"}, "no remap of the codes"),
        ("params", {"ddconfig": 3}, "expected ddconfig as an object"),
    ):
        with pytest.raises(ValueError, match=rf"vqgan\.yaml: .*{message}"):
            read(part, **changes)
    for content, message in (
        ("model: {params: {embed_dim: 256}}", "expected 'ddconfig', got the keys embed_dim"),
        ("[1]", "expected 'model', got list"),
        ("!!python/object/apply:os.getcwd []", "expected plain YAML"),
        ("{", "expected plain YAML"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_vqgan_yaml(path)
    with pytest.raises(FileNotFoundError, match="the VQ-GAN's settings"):
        read_vqgan_yaml(tmp_path / "other.yaml")
