"""A cache of token ids: whole numbers, frames that stand alone, no text. What it gives is what the frames give."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange, reduce
from safetensors.torch import load_file

from wamkit.codecs.base import CacheEncoder, TextTokens
from wamkit.data.actions import ActionTransform
from wamkit.data.encode import encode_dataset
from wamkit.data.encoded import CachePurpose, EncodedDataset, codecs_digest, episode_path, read_manifest
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import compute_statistics
from wamkit.data.synthetic import MemoryDataset, synthetic_episodes, synthetic_robot
from wamkit.data.transforms import Normalizer
from wamkit.data.windows import WindowConfig

WINDOWS = WindowConfig(
    context=2, chunk=1, action_horizon=5, pick="spaced", action_offset=0, future_stride=1, whole=True
)


class Greys:
    """The mean grey of each 8 x 8 patch as a token id."""

    def __init__(self, largest: int = 255) -> None:
        self.scale = largest / 255

    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        means = reduce(frames.double(), "n (y h) (x w) c -> n 1 1 y x", "mean", h=8, w=8)
        return (means * self.scale).long()

    def encode_clips(self, clips: torch.Tensor) -> None:
        return None

    def encode_text(self, sentences: list[str]) -> TextTokens | None:
        return None


class SpreadGreys(Greys):
    """Latents with a spread and sentences, but no clips."""

    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        mean = super().encode_frames(frames) / 255
        return torch.cat([mean, mean + 1], dim=1).float()

    def encode_text(self, sentences: list[str]) -> TextTokens:
        tokens = torch.tensor([[[float(len(sentence))]] * 2 for sentence in sentences])
        return TextTokens(tokens=tokens, mask=torch.ones(len(sentences), 2, dtype=torch.bool))


@pytest.fixture(scope="module")
def dataset() -> MemoryDataset:
    episodes = synthetic_episodes(3, length=12, seed=1) + synthetic_episodes(1, length=30, seed=2)
    return MemoryDataset(episodes, synthetic_robot())


def purpose(windows: WindowConfig = WINDOWS, **settings: object) -> CachePurpose:
    wanted = {"codec": {"image": "greys"}, "dtype": "float32", "dataset": "squares"} | settings
    return CachePurpose.of(
        cameras=("front", "wrist"), image_size=(32, 32), preprocess="exact", windows=windows, **wanted
    )


def make(folder: Path, dataset: MemoryDataset, encoder: CacheEncoder, **settings: object) -> Path:
    for part in ("image", "text"):
        (folder / "codecs" / part).mkdir(parents=True, exist_ok=True)
        (folder / "codecs" / part / "config.json").write_text(json.dumps({"type": part}))
    report = encode_dataset(dataset, folder, purpose(**settings), WINDOWS, encoder=encoder, batch_size=7)
    assert report.episodes == len(dataset.episodes)
    return folder


@pytest.fixture(scope="module")
def cache(dataset: MemoryDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("caches") / "cache", dataset, Greys())


def loader(dataset: MemoryDataset, windows: WindowConfig, encoded: EncodedDataset | None = None) -> WindowLoader:
    statistics = compute_statistics(dataset)
    action = ActionTransform(normalizer=Normalizer.from_statistics("minmax", statistics["action"]))
    state = Normalizer.from_statistics("minmax", statistics["state"])
    return WindowLoader(dataset, windows, action=action, state=state, batch_size=16, seed=3, encoded=encoded)


@pytest.mark.parametrize(
    "windows",
    [
        WINDOWS,
        WindowConfig(context=3, chunk=2, action_horizon=4, pick="spaced", spacing=3),
        WindowConfig(context=2, chunk=3, action_horizon=3, sample_n_frames=9, first_row=1, future_stride=2),
    ],
)
def test_windows_are_the_tokens_of_their_frames(dataset: MemoryDataset, cache: Path, windows: WindowConfig) -> None:
    """One cache serves windows of every kind, with the tokens that their frames have on their own."""
    greys = Greys()
    encoded = EncodedDataset(cache, purpose(windows), episodes=range(4))
    from_frames, from_cache = loader(dataset, windows), loader(dataset, windows, encoded)
    for step in range(3):
        frames, batch = from_frames.batch(step), from_cache.batch(step)
        assert torch.equal(batch.actions, frames.actions) and torch.equal(batch.is_repeated, frames.is_repeated)
        assert batch.context is None and batch.future is None
        tokens = batch.encoded
        assert tokens.context.dtype == tokens.future.dtype == torch.int16
        assert tokens.context.shape == (16, 2, windows.context, 1, 1, 4, 4)
        assert tokens.future.shape == (16, 2, 1, 1, windows.chunk, 4, 4)
        for name, own in (("context", tokens.context[..., 0, 0, :, :]), ("future", tokens.future[:, :, 0, 0])):
            video = getattr(frames, name)
            expected = greys.encode_frames(rearrange(video, "b v t h w c -> (b v t) h w c"))[:, 0, 0]
            assert torch.equal(own.long(), expected.unflatten(0, video.shape[:3])), name
        assert (tokens.text, tokens.text_mask, tokens.empty_text, tokens.empty_mask) == (None, None, None, None)
        some = batch.rows([4, 2]).to("cpu").encoded
        assert torch.equal(some.context, tokens.context[[4, 2]]) and some.text is None
        assert from_cache.batch(step, need_future=False).encoded.future is None


def test_a_cache_of_tokens_holds_nothing_else(dataset: MemoryDataset, cache: Path) -> None:
    assert sorted(item.name for item in cache.iterdir() if not item.name.startswith(".")) == [
        "cache.json",
        "codecs",
        "episodes",
    ]
    stored = load_file(episode_path(cache, 3))
    assert set(stored) == {"frames"} and stored["frames"].shape == (30, 2, 1, 1, 4, 4)
    assert stored["frames"].dtype == torch.int16
    front = torch.from_numpy(dataset.frames(3, "front", range(30)))
    assert torch.equal(stored["frames"][:, 0].long(), Greys().encode_frames(front))
    manifest = read_manifest(cache)
    held = sum(tensor.nbytes for file in (cache / "episodes").iterdir() for tensor in load_file(file).values())
    assert held == manifest["num_bytes"] == 66 * 2 * 16 * 2
    assert manifest["sentences"] is None


def test_tokens_serve_whatever_dtype_is_asked_for(dataset: MemoryDataset, cache: Path, tmp_path: Path) -> None:
    EncodedDataset(cache, purpose(dtype="bfloat16"))
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    before = episode_path(copy, 0).stat().st_mtime_ns
    report = encode_dataset(dataset, copy, purpose(dtype="bfloat16"), WINDOWS, encoder=Greys())
    assert report.encoded == 0 and episode_path(copy, 0).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"made for something else:\n  - codec: the cache has {'image': 'greys'}"):
        EncodedDataset(cache, purpose(codec={"image": "other"}))
    with pytest.raises(ValueError, match="dataset: the cache has 'squares', this run 'circles'"):
        EncodedDataset(cache, purpose(dataset="circles"))


def test_latents_without_clips_keep_their_dtype_and_text(dataset: MemoryDataset, tmp_path: Path) -> None:
    cache = make(tmp_path / "cache", dataset, SpreadGreys(), dtype="bfloat16")
    with pytest.raises(ValueError, match="dtype: the cache has 'bfloat16', this run 'float32'"):
        EncodedDataset(cache, purpose())
    other = WindowConfig(context=1, chunk=2, action_horizon=2, pick="spaced")
    encoded = EncodedDataset(cache, purpose(other, dtype="bfloat16"))
    rows = {"context": np.array([[4]]), "current": np.array([4]), "future": np.array([[5, 6]])}
    task = dataset.episodes[2].task
    windows = encoded.windows(episodes=[2], task=[task], **rows)
    assert windows.context.shape == (1, 2, 1, 2, 1, 4, 4) and windows.future.shape == (1, 2, 2, 1, 2, 4, 4)
    frames = torch.from_numpy(dataset.frames(2, "wrist", [5, 6]))
    expected = SpreadGreys().encode_frames(frames).to(torch.bfloat16)
    assert torch.equal(windows.future[0, 1], rearrange(expected, "f q k y x -> q k f y x"))
    assert windows.text.tolist() == [[[len(task)]] * 2] and windows.empty_text.tolist() == [[[0.0]] * 2]
    with pytest.raises(ValueError, match="no sentence 'fold the towel'"):
        encoded.windows(episodes=[2], task=["fold the towel"], **rows)


def test_tokens_that_are_too_large_are_refused(dataset: MemoryDataset, tmp_path: Path) -> None:
    message = r"token ids as int16, -32768 to 32767; the codec gave \d+ to \d{5}: train from frames"
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "cache", dataset, Greys(largest=60_000))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    with pytest.raises(ValueError, match="is not complete"):
        EncodedDataset(tmp_path / "cache", purpose())


def test_short_and_damaged_files_are_named(dataset: MemoryDataset, cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    shutil.copy(episode_path(copy, 0), episode_path(copy, 3))
    encoded = EncodedDataset(copy, purpose())
    rows = {"context": np.array([[10, 11]]), "current": np.array([11]), "task": ["any sentence"]}
    assert encoded.windows(episodes=[3], future=None, **rows).context.shape == (1, 2, 2, 1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"episode_000003.safetensors: expected a row 12 of frames, it is shorter"):
        encoded.windows(episodes=[3], future=np.array([[12]]), **rows)
    path = episode_path(copy, 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"episode_000001.safetensors is damaged"):
        encoded.windows(episodes=[1], future=None, **rows)


def test_a_full_disk_is_foreseen_without_advice_that_does_not_help(
    dataset: MemoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("wamkit.data.encode.shutil.disk_usage", lambda folder: usage._replace(free=10))
    with pytest.raises(OSError, match=r"choose another disk$"):
        make(tmp_path / "cache", dataset, Greys())


def test_every_codec_in_the_folder_counts(cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    (copy / "codecs" / "made_for.json").write_text("{}")  # a note, not a codec
    EncodedDataset(copy, purpose())
    (copy / "codecs" / "image" / "config.json").write_text('{"type": "image", "num_codes": 9}')
    with pytest.raises(ValueError, match="has changed since the cache was made with it"):
        EncodedDataset(copy, purpose())


def test_the_digest_of_video_and_text_is_that_of_the_first_caches(tmp_path: Path) -> None:
    total = hashlib.sha256()
    for name in ("video/config.json", "video/model.safetensors", "text/config.json"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
        total.update(f"{name}\0".encode() + hashlib.sha256(name.encode()).digest())
    assert codecs_digest(tmp_path) == total.hexdigest()


def test_encoders_are_what_the_protocol_says() -> None:
    assert isinstance(Greys(), CacheEncoder) and isinstance(SpreadGreys(), CacheEncoder)
    assert purpose().served_by(has_clips=True, has_floats=True) == purpose(), "a cache of clips serves its own alone"
