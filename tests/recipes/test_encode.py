"""A cache of latents: training from it is training from pictures, and what does not fit it is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_augmentation import tiny_run, write_dataset

from wamkit.cli.main import main
from wamkit.codecs.load import load_text_encoder, load_video_codec
from wamkit.data.encoded import EncodedDataset, read_manifest
from wamkit.data.image_settings import ColorJitter
from wamkit.data.lerobot import LeRobotDataset
from wamkit.models.wav.family import WAV
from wamkit.policy import load_policy
from wamkit.recipes import execute as recipe
from wamkit.recipes.run import Run
from wamkit.training.log import read_metrics


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("square") / "dataset")


def published(run: Run) -> Run:
    """The published windows: random memory, from row 1 on, a lead of one row, all stages with noise on the memory."""
    data = dataclasses.replace(run.data, pick="random", first_row=1, action_offset=1, sample_n_frames=12)
    stages = [
        dataclasses.replace(stage, objective=dataclasses.replace(stage.objective, caption_dropout=0.5))
        for stage in run.stages
    ]
    return dataclasses.replace(run, data=data, stages=tuple(stages))


@pytest.fixture(scope="module")
def cache(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made for the tiny recipe's own windows."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    report = recipe.encode(tiny_run(dataset, Path(), cache=folder))
    assert (report.episodes, report.encoded) == (3, 3)
    return folder


def losses(run: Run) -> list[tuple[float, float]]:
    rows = read_metrics(run.output / "metrics.jsonl")
    assert len(rows) == 6
    return [(row["loss"], row["grad_norm"]) for row in rows]


@pytest.mark.parametrize("windows", ["recipe", "published"])
def test_training_from_the_cache_is_training_from_pictures(
    dataset: Path, cache: Path, tmp_path: Path, windows: str
) -> None:
    """The same losses and gradients in every stage: bit for bit up to how a matrix product adds up rows."""
    pixels = tiny_run(dataset, tmp_path / "pixels")
    if windows == "published":
        pixels, cache = published(pixels), tmp_path / "cache"
    cached = dataclasses.replace(pixels, output=tmp_path / "cached", data=dataclasses.replace(pixels.data, cache=cache))
    if windows == "published":
        recipe.encode(cached)
    for run in (pixels, cached):
        recipe.execute(run)
    for one, other in zip(losses(pixels), losses(cached), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    weights = [load_policy(run.output / "policy").model.network.state_dict() for run in (pixels, cached)]
    for name, tensor in weights[0].items():
        # Adam's first updates are as large as the learning rate however small a gradient is, so rounding shows.
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=2e-4, msg=name)


def test_no_frame_is_decoded(dataset: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a frame was decoded, or a codec was run")

    monkeypatch.setattr(LeRobotDataset, "frames", refuse)
    monkeypatch.setattr(WAV, "_computed", refuse)
    run = tiny_run(dataset, tmp_path / "run", cache=cache)
    assert recipe.execute(run).steps == 6


def test_the_cache_holds_what_the_codecs_give(dataset: Path, cache: Path) -> None:
    """Row by row, on its own, against the codecs in the cache."""
    video, text = load_video_codec(cache / "codecs" / "video"), load_text_encoder(cache / "codecs" / "text")
    source = LeRobotDataset(dataset)
    stored = load_file(cache / "episodes" / "episode_000001.safetensors")
    assert stored["frames"].shape == (20, 2, 1, 8, 2, 2) and stored["clips"].shape == (20, 2, 1, 8, 2, 2, 2)
    for view, camera in enumerate(source.cameras):
        frames = torch.from_numpy(source.frames(1, camera, range(20)))
        torch.testing.assert_close(stored["frames"][:, view, 0], video.encode_frames(frames), atol=1e-5, rtol=0)
        for current in (0, 7, 15, 19):
            rows = [min(current + step, 19) for step in range(1, 10)]
            clip = video.encode_clip(frames[None, rows])
            torch.testing.assert_close(stored["clips"][current, view], clip, atol=1e-5, rtol=0)
    manifest = read_manifest(cache)
    assert manifest["sentences"][0] == ""
    embedded = load_file(cache / "text.safetensors")
    expected = text.encode(manifest["sentences"])
    assert torch.equal(embedded["tokens"], expected.tokens) and torch.equal(embedded["mask"].bool(), expected.mask)
    held = sum(tensor.nbytes for file in (cache / "episodes").iterdir() for tensor in load_file(file).values())
    assert held == manifest["num_bytes"]


def test_the_record_of_a_cache_is_that_of_the_first_caches(dataset: Path, cache: Path) -> None:
    """Caches that are there stay good: every key and value as they were first written."""
    recorded = read_manifest(cache)["purpose"]
    codec = {"video": "patch", "spatial": 16, "temporal": 8, "text": "hash", "text_length": 6, "channels": 8}
    assert recorded == {
        "dataset": LeRobotDataset(dataset).fingerprint(),
        "cameras": ["front", "wrist"],
        "image_size": [32, 32],
        "preprocess": "exact",
        "num_future": 9,
        "stride": 1,
        "first_row": 0,
        "codec": codec,
        "dtype": "float32",
    }


def test_another_seed_trains_from_the_same_cache(dataset: Path, cache: Path, tmp_path: Path) -> None:
    """Codecs fitted for one run serve the others; a run resumes with the codecs that it has."""
    run = dataclasses.replace(tiny_run(dataset, tmp_path / "run", cache=cache), seed=5)
    recipe.execute(run)
    saved = (run.output / "policy" / "codecs" / "video" / "model.safetensors").read_bytes()
    assert saved == (cache / "codecs" / "video" / "model.safetensors").read_bytes()
    assert recipe.execute(run).steps == 0


def test_half_precision_takes_half_the_room(dataset: Path, cache: Path, tmp_path: Path) -> None:
    run = tiny_run(dataset, tmp_path / "run", cache=tmp_path / "half", cache_dtype="bfloat16")
    assert recipe.encode(run).num_bytes == read_manifest(cache)["num_bytes"] // 2
    recipe.execute(run)
    full = tiny_run(dataset, tmp_path / "full", cache=cache)
    recipe.execute(full)
    assert [loss for loss, _ in losses(run)] == pytest.approx([loss for loss, _ in losses(full)], rel=0.02)
    with pytest.raises(ValueError, match="dtype: the cache has 'bfloat16', this run 'float32'"):
        whole = dataclasses.replace(run.data, cache_dtype="float32")
        recipe.execute(dataclasses.replace(run, data=whole, output=tmp_path / "other"))


def test_an_interrupted_cache_is_refused_and_completed(dataset: Path, tmp_path: Path) -> None:
    run = tiny_run(dataset, tmp_path / "run", cache=tmp_path / "cache")

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    original = recipe.encode_dataset
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(recipe, "encode_dataset", lambda *a, **k: original(*a, **{**k, "progress": stop}))
        recipe.encode(run)
    with pytest.raises(ValueError, match="is not complete; run the same `wamkit data encode` again"):
        recipe.execute(run)
    assert not run.output.exists()
    assert recipe.encode(run).encoded == 1
    assert recipe.encode(run).encoded == 0
    recipe.execute(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_row": 1}, "first_row: the cache has 0, this run 1"),
        ({"preprocess": "resize"}, "preprocess: the cache has 'exact', this run 'resize'"),
        ({"color_jitter": ColorJitter.published()}, r"\['data.color_jitter'\] would change them at every step"),
        ({"random_crop": True}, r"\['data.random_crop'\] would change them at every step"),
    ],
)
def test_a_cache_of_other_pictures_is_refused(
    dataset: Path, cache: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    run = tiny_run(dataset, tmp_path / "run", cache=cache, **changes)
    for begin in (recipe.execute, recipe.encode):
        with pytest.raises(ValueError, match=message):
            begin(run)
    assert not run.output.exists()


def test_a_cache_of_another_dataset_or_codec_is_refused(dataset: Path, cache: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", num=4)
    with pytest.raises(ValueError, match=r"made for something else:\n  - dataset: the cache has"):
        recipe.execute(tiny_run(other, tmp_path / "run", cache=cache))
    run = tiny_run(dataset, tmp_path / "run", cache=cache)
    codec = dataclasses.replace(run.model.codec, text_length=4)
    with pytest.raises(ValueError, match="codec: the cache has"):
        recipe.execute(dataclasses.replace(run, model=dataclasses.replace(run.model, codec=codec)))
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    settings = copy / "codecs" / "text" / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "seed": 1}))
    with pytest.raises(ValueError, match="has changed since the cache was made with it"):
        recipe.execute(tiny_run(dataset, tmp_path / "run", cache=copy))
    with pytest.raises(FileNotFoundError, match="found none; make it with `wamkit data encode`"):
        recipe.execute(tiny_run(dataset, tmp_path / "run", cache=tmp_path / "none"))
    assert not (tmp_path / "run").exists()


def test_damaged_and_missing_latents_are_named(dataset: Path, cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    file = copy / "episodes" / "episode_000002.safetensors"
    tensors = load_file(file)
    save_file({name: tensor[:5].clone() for name, tensor in tensors.items()}, file)
    with pytest.raises(ValueError, match=r"episode_000002.safetensors: expected a row \d+ of (frames|clips)"):
        recipe.execute(tiny_run(dataset, tmp_path / "short", cache=copy))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"episode_000002\.safetensors is damaged"):
        recipe.execute(tiny_run(dataset, tmp_path / "damaged", cache=copy))
    file.unlink()
    with pytest.raises(FileNotFoundError, match="latents of episode 2"):
        recipe.execute(tiny_run(dataset, tmp_path / "missing", cache=copy))


def test_a_full_disk_is_foreseen(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("wamkit.data.encode.shutil.disk_usage", lambda folder: usage._replace(free=10))
    with pytest.raises(OSError, match=r"choose another disk, or data\.cache_dtype bfloat16"):
        recipe.encode(tiny_run(dataset, Path(), cache=tmp_path / "cache"))
    assert not (tmp_path / "cache" / "episodes").exists()


def test_sentences_that_the_cache_lacks_are_named(dataset: Path, cache: Path) -> None:
    run = tiny_run(dataset, Path(), cache=cache)
    source = LeRobotDataset(dataset)
    encoded = EncodedDataset(cache, recipe._purpose(run, recipe.open_data(run), source.robot))
    rows = torch.zeros(1, 2, dtype=torch.int64).numpy()
    wanted = {"episodes": [0], "context": rows, "current": rows[:, 0], "future": None}
    assert encoded.windows(task=[source.episodes[0].task], **wanted).context.shape == (1, 2, 2, 1, 8, 2, 2)
    with pytest.raises(ValueError, match="no sentence 'fold the towel'"):
        encoded.windows(task=["fold the towel"], **wanted)


def test_the_command_line_encodes(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "encode", "debug"]) == 2
    assert "--data.cache" in capsys.readouterr().err
    arguments = ["debug", "--data.root", str(dataset), "--data.cache", str(tmp_path / "cache")]
    assert main(["data", "encode", *arguments]) == 2
    assert "action channels: model 4, dataset 3" in capsys.readouterr().err
    expert = ("--model.network.{0}.num-heads", "2", "--model.network.{0}.head-dim", "8", "--model.network.{0}.channels")
    fitted = [*("--model.action-dim", "3", "--model.state-dim", "3", "--device", "cpu")]
    fitted += ["model.network.value:expert-config", *(word.format("value") for word in expert), "1"]
    fitted += ["model.network.action:expert-config", *(word.format("action") for word in expert), "6"]
    assert main(["data", "encode", *arguments, *fitted]) == 0
    assert "3 episodes in" in capsys.readouterr().out
    assert main(["train", *arguments, "--output", str(tmp_path / "run"), *fitted]) == 0
