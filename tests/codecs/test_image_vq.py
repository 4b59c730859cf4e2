"""The VQ-GAN against a second writing of it and against Chameleon's own code; the tokeniser around it; its fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wamkit.codecs.base import ImageTokenizer, to_unit_range
from wamkit.codecs.image_vq import VQImageTokenizer
from wamkit.codecs.image_vq_config import VQConfig, norm_groups
from wamkit.codecs.image_vq_network import Codebook, VQNetwork, initialized
from wamkit.codecs.image_vq_training import CodeRevival
from wamkit.codecs.load import load_image_tokenizer
from wamkit.draws import seeded

SMALL = VQConfig(base_width=32, multipliers=(1, 2, 4), num_blocks=2, latent_channels=12, code_width=8, num_codes=50)


def scrambled(config: VQConfig, seed: int = 0) -> VQNetwork:
    """A network in which nothing is zero or one, so that no tensor can go unused unseen."""
    network = initialized(config, seeded(seed))
    draws = seeded(seed, "scrambled")
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return network


def random_frames(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=seeded(seed, "frames"))


def soft_shapes(n: int, side: int = 32, seed: int = 0) -> Tensor:
    """A bright disc with a soft edge somewhere before a dark ground."""
    draws = seeded(seed, "shapes")
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    centre = 0.2 + 0.6 * torch.rand(n, 2, 1, 1, generator=draws)
    radius = 0.1 + 0.15 * torch.rand(n, 1, 1, generator=draws)
    distance = ((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2).sqrt()
    inside = torch.sigmoid(20 * (radius - distance))[..., None]
    colour = 0.5 + 0.5 * torch.rand(n, 1, 1, 3, generator=draws)
    ground = torch.tensor([0.2, 0.3, 0.4])
    return (255 * (inside * colour + (1 - inside) * ground)).round().to(torch.uint8)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).square().mean())


class Plain:
    """The network once more, written straight from its description: functional calls on a dict of tensors."""

    def __init__(self, state: dict[str, Tensor], config: VQConfig):
        self.state, self.config = state, config

    def conv(self, x: Tensor, name: str, **how: Any) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **how)

    def swished(self, x: Tensor, name: str, *, activate: bool = True) -> Tensor:
        n, width, h, w = x.shape
        groups = {32: 8, 64: 16}.get(width, 32)
        cells = x.reshape(n, groups, -1)
        normal = (cells - cells.mean(2, keepdim=True)) / (cells.var(2, keepdim=True, correction=0) + 1e-6).sqrt()
        weight, bias = (self.state[f"{name}.{part}"].reshape(1, width, 1, 1) for part in ("weight", "bias"))
        normal = normal.reshape(n, width, h, w) * weight + bias
        return normal * torch.sigmoid(normal) if activate else normal

    def block(self, x: Tensor, name: str) -> Tensor:
        change = self.conv(self.swished(x, f"{name}.norm1"), f"{name}.conv1", padding=1)
        change = self.conv(self.swished(change, f"{name}.norm2"), f"{name}.conv2", padding=1)
        if f"{name}.nin_shortcut.weight" in self.state:
            x = self.conv(x, f"{name}.nin_shortcut")
        return x + change

    def middle(self, x: Tensor, name: str) -> Tensor:
        x = self.block(x, f"{name}.block_1")
        n, width, h, w = x.shape
        normal = self.swished(x, f"{name}.attn_1.norm", activate=False)
        q, k, v = (self.conv(normal, f"{name}.attn_1.{part}").reshape(n, width, h * w) for part in "qkv")
        weights = torch.softmax(q.transpose(1, 2) @ k / width**0.5, dim=2)
        read = (v @ weights.transpose(1, 2)).reshape(n, width, h, w)
        return self.block(x + self.conv(read, f"{name}.attn_1.proj_out"), f"{name}.block_2")

    def encode(self, images: Tensor) -> Tensor:
        x = self.conv(images, "encoder.conv_in", padding=1)
        levels = len(self.config.multipliers)
        for level in range(levels):
            for index in range(self.config.num_blocks):
                x = self.block(x, f"encoder.down.{level}.block.{index}")
            if level < levels - 1:
                n, c, h, w = x.shape
                padded = x.new_zeros(n, c, h + 1, w + 1)
                padded[:, :, :h, :w] = x
                x = self.conv(padded, f"encoder.down.{level}.downsample.conv", stride=2)
        x = self.swished(self.middle(x, "encoder.mid"), "encoder.norm_out")
        return self.conv(self.conv(x, "encoder.conv_out", padding=1), "quant_conv")

    def decode(self, vectors: Tensor) -> Tensor:
        x = self.conv(self.conv(vectors, "post_quant_conv"), "decoder.conv_in", padding=1)
        x = self.middle(x, "decoder.mid")
        for level in reversed(range(len(self.config.multipliers))):
            for index in range(self.config.num_blocks + 1):
                x = self.block(x, f"decoder.up.{level}.block.{index}")
            if level > 0:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(x, f"decoder.up.{level}.upsample.conv", padding=1)
        return self.conv(self.swished(x, "decoder.norm_out"), "decoder.conv_out", padding=1)


@pytest.mark.parametrize(
    ("config", "height", "width"),
    [
        (SMALL, 16, 24),
        (VQConfig.tiny(), 32, 16),
        (VQConfig(base_width=128, multipliers=(1, 2), num_blocks=1, latent_channels=8, code_width=4), 8, 6),
    ],
    ids=["small", "tiny", "published widths"],
)
def test_network_is_what_its_description_says(config: VQConfig, height: int, width: int) -> None:
    network = scrambled(config).double()  # so that the order of sums says nothing
    plain = Plain(network.state_dict(), config)
    images = to_unit_range(random_frames(2, height, width)).double()
    with torch.no_grad():
        vectors = network.encode(images)
        torch.testing.assert_close(vectors, plain.encode(images), atol=1e-9, rtol=1e-9)
        codes = network.codes(vectors)
        assert codes.shape == (2, height // config.spatial, width // config.spatial)
        entries = network.entries(codes)
        wanted = plain.decode(network.quantize.embedding.weight[codes].movedim(3, 1))
        torch.testing.assert_close(network.decode(entries), wanted, atol=1e-9, rtol=1e-9)


def test_encoder_gives_the_codes_of_chameleon() -> None:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    config = VQConfig(multipliers=(1, 1, 2), num_blocks=1, latent_channels=16, code_width=8, num_codes=200)
    settings = ChameleonVQVAEConfig(
        base_channels=128, channel_multiplier=[1, 1, 2], num_res_blocks=1, latent_channels=16, embed_dim=8
    )
    settings.num_embeddings = 200
    network = scrambled(config)
    half = ChameleonVQVAE(settings)
    unused = half.load_state_dict(network.state_dict(), strict=False)
    assert not unused.missing_keys and all(name.startswith("decoder.") for name in unused.unexpected_keys)
    frames = random_frames(2, 32, 16)
    with torch.no_grad():
        found = half.encode(to_unit_range(frames))
    codes = VQImageTokenizer(network).encode(frames)
    assert len(codes.unique()) > 10
    assert torch.equal(codes.flatten(), found.image_tokens.flatten())


def test_published_size() -> None:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    config = VQConfig.published()
    with torch.device("meta"):
        network, half = VQNetwork(config), ChameleonVQVAE(ChameleonVQVAEConfig())
    assert config.spatial == 16 and config.widths == (128, 128, 256, 256, 512)

    def conv(i: int, o: int, k: int = 3) -> int:
        return k * k * i * o + o

    def block(i: int, o: int) -> int:
        return 2 * i + conv(i, o) + 2 * o + conv(o, o) + (conv(i, o, 1) if i != o else 0)

    middle = 2 * block(512, 512) + 2 * 512 + 4 * conv(512, 512, 1)
    levels = [(128, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    down = sum(block(i, o) + block(o, o) for i, o in levels) + sum(conv(o, o) for _, o in levels[:-1])
    encoder = conv(3, 128) + down + middle + 2 * 512 + conv(512, 256)
    levels = [(512, 512), (512, 256), (256, 256), (256, 128), (128, 128)]
    up = sum(block(i, o) + 2 * block(o, o) for i, o in levels) + sum(conv(o, o) for _, o in levels[:-1])
    decoder = conv(256, 512) + middle + up + 2 * 128 + conv(128, 3)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert counts == {
        "encoder": encoder,
        "quant_conv": 256 * 256 + 256,
        "quantize": 8192 * 256,
        "post_quant_conv": 256 * 256 + 256,
        "decoder": decoder,
    }
    assert sum(counts.values()) == 68_718_467
    ours = {name: tensor.shape for name, tensor in network.state_dict().items() if not name.startswith("decoder.")}
    assert ours == {name: tensor.shape for name, tensor in half.state_dict().items()}
    assert all(norm_groups(width) == 32 for width in config.widths)


def test_nearest_code_is_the_nearest_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    book = Codebook(40, 6)
    draws = seeded("nearest")
    book.embedding.weight.data.copy_(torch.randn(40, 6, generator=draws))
    vectors = 2 * torch.randn(500, 6, generator=draws)
    with torch.no_grad():
        wanted = torch.cdist(vectors.double(), book.embedding.weight.double()).argmin(1)
        assert torch.equal(book.nearest(vectors), wanted)
        monkeypatch.setattr("wamkit.codecs.image_vq_network._CHUNK_DISTANCES", 7 * 40)
        assert torch.equal(book.nearest(vectors), wanted)
        assert torch.equal(book.nearest(book.embedding.weight), torch.arange(40))
        assert book.nearest(vectors[:0]).shape == (0,)
        book.embedding.weight[30] = book.embedding.weight[3]
        assert book.nearest(book.embedding.weight[30:31]).tolist() == [3]


def test_tokenizer_at_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = VQImageTokenizer(scrambled(SMALL))
    assert isinstance(tokenizer, ImageTokenizer)
    assert (tokenizer.spatial, tokenizer.num_codes) == (4, 50)
    assert not tokenizer.network.training and not any(p.requires_grad for p in tokenizer.network.parameters())
    frames = random_frames(3, 12, 8)
    codes = tokenizer.encode(frames)
    assert codes.shape == (3, 3, 2) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 50 and len(codes.unique()) > 3
    images = tokenizer.decode(codes)
    assert images.shape == frames.shape and images.dtype == torch.uint8
    with torch.no_grad():
        values = tokenizer.network.decode(tokenizer.network.entries(codes)).movedim(1, -1)
    assert values.min() < -1 or values.max() > 1  # so that the clamp has something to do
    levels = (values.clamp(-1, 1) + 1) * 127.5
    assert (images.float() - levels).abs().max() <= 0.501
    assert torch.equal(tokenizer.decode(codes.to(torch.int16)), images)
    monkeypatch.setattr("wamkit.codecs.image_vq._SLICE_PIXELS", 1)  # one frame per pass
    assert torch.equal(tokenizer.encode(frames), codes)
    assert (tokenizer.decode(codes).int() - images.int()).abs().max() <= 1
    assert tokenizer.encode(frames[:0]).shape == (0, 3, 2)
    assert tokenizer.decode(codes[:0]).shape == (0, 12, 8, 3)
    assert tokenizer.to("cpu") is tokenizer


def test_any_code_decodes() -> None:
    tokenizer = VQImageTokenizer(initialized(VQConfig.tiny(), seeded(0)))
    codes = torch.randint(0, tokenizer.num_codes, (2, 4, 4), generator=seeded(1))
    assert tokenizer.decode(codes).shape == (2, 64, 64, 3)


def test_wrong_input_is_refused() -> None:
    tokenizer = VQImageTokenizer(scrambled(SMALL))
    with pytest.raises(ValueError, match="multiples of 4, got 10x8"):
        tokenizer.encode(random_frames(1, 10, 8))
    with pytest.raises(ValueError, match="codes of 0 to 49, got 0 to 50"):
        tokenizer.decode(torch.tensor([[[0, 50]]]))
    for change, message in (
        ({"base_width": 30}, r"can group .* got base_width 30 and levels of \(30, 60, 120\)"),
        ({"base_width": 132, "multipliers": (1,)}, "can group"),
        ({"multipliers": ()}, r"multipliers of 1 or more, one per level, got \(\)"),
        ({"multipliers": (1, 0)}, "multipliers of 1 or more"),
        ({"num_codes": 0}, "num_codes of 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            VQConfig(**{**{"base_width": 32, "multipliers": (1, 2, 4)}, **change})


def test_saved_tokenizer_comes_back(tmp_path: Path) -> None:
    tokenizer = VQImageTokenizer(scrambled(SMALL))
    tokenizer.save(tmp_path / "image")
    assert sorted(item.name for item in (tmp_path / "image").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_image_tokenizer(tmp_path / "image")
    assert isinstance(loaded, VQImageTokenizer) and loaded.config == SMALL
    frames = random_frames(2, 8, 8)
    codes = tokenizer.encode(frames)
    assert torch.equal(loaded.encode(frames), codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    VQImageTokenizer(scrambled(SMALL)).save(tmp_path)
    settings, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    text, content = settings.read_text(), weights.read_bytes()
    for found, put, message in (
        ('"num_codes": 50', '"num_codes": 51', r"quantize\.embedding\.weight: expected \[51, 8\], got \[50, 8\]"),
        ('"num_codes": 50', '"num_codes": "50"', r"config\.json: .*num_codes as a whole number"),
        ('"version": 1', '"version": 2', "expected type 'image_vq' and version 1, got 'image_vq' and 2"),
        ('"source": null', '"source": 3', "expected an object"),
    ):
        assert found in text
        settings.write_text(text.replace(found, put))
        with pytest.raises(ValueError, match=message):
            VQImageTokenizer.load(tmp_path)
    settings.write_text(text)
    weights.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short"):
        VQImageTokenizer.load(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors"):
        VQImageTokenizer.load(tmp_path)


def test_fit_learns_soft_shapes() -> None:
    frames, unseen = soft_shapes(96), soft_shapes(32, seed=1)
    calls: list[tuple[int, int]] = []
    state = torch.get_rng_state()
    fitted = VQImageTokenizer.fit(
        frames, VQConfig.tiny(), seeded(0), steps=60, batch_size=8, progress=lambda *at: calls.append(at)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert calls == [(step, 60) for step in range(1, 61)]
    untrained = VQImageTokenizer(initialized(VQConfig.tiny(), seeded(0)))
    mean_image, grey = frames.float().mean(0), unseen.float().mean((1, 2), keepdim=True)
    for tokenizer, limit in ((fitted, 0.75), (untrained, 100.0)):
        codes = tokenizer.encode(unseen)
        found = error(tokenizer.decode(codes), unseen)
        constant = min(error(mean_image, unseen), error(grey, unseen))
        assert found < limit * constant, (found, constant)
        assert len(codes.unique()) > 10 or tokenizer is untrained
    assert error(fitted.decode(fitted.encode(unseen)), unseen) < 0.5 * error(
        untrained.decode(untrained.encode(unseen)), unseen
    )


def test_fit_follows_from_the_generator_alone() -> None:
    config = VQConfig(base_width=16, multipliers=(1, 1), num_blocks=1, latent_channels=8, code_width=4, num_codes=32)
    frames = soft_shapes(12, side=8)

    def fit(seed: int) -> dict[str, Tensor]:
        return VQImageTokenizer.fit(frames, config, seeded(seed), steps=25, batch_size=4).network.state_dict()

    first, again, other = fit(0), fit(0), fit(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("conv_in.weight"))
    for rows, config_, options in (
        (frames[:0], config, {}),
        (frames, config, {"steps": 0}),
        (frames, config, {"batch_size": 0}),
        (frames, VQConfig(base_width=16, multipliers=(1, 1), has_decoder=False), {}),
    ):
        with pytest.raises(ValueError, match="a fit takes frames, steps and a batch_size of 1 or more each"):
            VQImageTokenizer.fit(rows, config_, seeded(0), **options)


def test_codes_that_nothing_chooses_move_to_where_vectors_are() -> None:
    config = VQConfig(base_width=16, multipliers=(1,), num_blocks=1, latent_channels=4, code_width=4, num_codes=30)
    network = initialized(config, seeded(0))
    revival = CodeRevival(network, seeded(1))
    vectors = 50.0 + torch.randn(12, 4, generator=seeded(2))
    revival.replace_all(vectors)
    book = network.quantize.embedding.weight
    assert {tuple(row) for row in book.tolist()} == {tuple(row) for row in vectors.tolist()}
    seen = -50.0 + torch.randn(2, 4, 1, 1, generator=seeded(3))
    before = book.detach().clone()
    for _ in range(10):
        assert torch.equal(book, before)
        revival.observe(seen, torch.tensor([3, 4]).reshape(2, 1, 1))
        revival.revive_dead()
    moved = (book != before).any(1)
    assert moved.sum() == 20 and not moved[[3, 4]].any()
    assert (book[moved] < 0).all()
