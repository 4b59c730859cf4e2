"""Frames out of many files: those of one reader bit for bit, from several threads, and never of a file that is gone."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from wamkit.data.actions import ActionTransform
from wamkit.data.frames import FrameStore
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.loader import WindowLoader
from wamkit.data.stats import compute_statistics
from wamkit.data.transforms import Normalizer
from wamkit.data.video import VideoError, VideoReader, read_frames
from wamkit.data.video_files import VideoFiles
from wamkit.data.windows import WindowConfig

from .test_video import counting_frames, fast_start, read_number, write_video


def encode(path: Path, codec: str, options: dict[str, str], frames: np.ndarray, fps: int = 25) -> Path:
    """A file by an encoder's own options; the container follows from the name."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.color_range = 2  # full: says how pixels are converted, and lies in the container too
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("plain.mp4", "libx264", {"g": "2", "preset": "veryfast"}),
        ("reordered.mp4", "libx264", {"g": "12", "bf": "3", "preset": "medium"}),
        ("open-hevc.mp4", "libx265", {"g": "12", "x265-params": "log-level=error:open-gop=1:bframes=3:pools=none"}),
        ("av1.mp4", "libsvtav1", {"g": "10", "preset": "12"}),
        ("other.mkv", "libx264", {"g": "5"}),
    ],
)
def test_the_same_frames_as_decoding_in_order(tmp_path, monkeypatch, name, codec, options):
    monkeypatch.setenv("SVT_LOG", "1")
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 12, (48, 64, 64, 3))  # so that a wrong reference would show in some pixel
    path = encode(tmp_path / name, codec, options, (counting_frames(48) + noise).clip(0, 255).astype(np.uint8))
    with VideoReader(path) as reader:
        straight = [reader.to_rgb(frame).copy() for frame in reader._container.decode(video=0)]
    assert len(straight) == 48
    files = VideoFiles()
    for _ in range(25):
        indices = rng.integers(0, 48, size=rng.integers(1, 9)).tolist()
        frames = files.read(path, indices, fps=25)
        for frame, index in zip(frames, indices, strict=True):
            np.testing.assert_array_equal(frame, straight[index], err_msg=f"frame {index} of {indices}")


def test_files_of_one_kind_share_decoders_and_others_do_not(tmp_path):
    files = VideoFiles(max_decoders=2, max_tables=2)
    paths = [write_video(tmp_path / f"{number}.mp4", num=20 + number) for number in range(3)]
    others = [write_video(tmp_path / f"{codec}.mp4", codec=codec) for codec in ("hevc", "av1")]
    for path in [*paths, *others, *paths]:
        np.testing.assert_array_equal(files.read(path, [7, 4], fps=80), read_frames(path, [7, 4], fps=80))
    assert len(files._idle) == 2 and len(files._tables) == 2
    assert files._idle[0][0] != files._idle[1][0]


def test_many_threads_get_what_one_gets(tmp_path):
    paths = [write_video(tmp_path / f"{number}.mp4", num=60, crf=15 + 5 * number) for number in range(3)]
    files, rng = VideoFiles(), np.random.default_rng(1)
    wanted = [(paths[int(rng.integers(3))], rng.integers(0, 60, size=6).tolist()) for _ in range(60)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: files.read(*one, fps=80), wanted))
    for frames, (path, indices) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(frames, read_frames(path, indices, fps=80))


def test_a_file_that_changes_is_noticed(tmp_path):
    path, files = write_video(tmp_path / "a.mp4"), VideoFiles()
    assert read_number(files.read(path, [9], fps=80)[0]) == 9
    path.write_bytes(write_video(tmp_path / "b.mp4", num=30, keyframe_interval=7).read_bytes())
    assert read_number(files.read(path, [29], fps=80)[0]) == 29
    with pytest.raises(VideoError, match=r"a\.mp4.*the end of the video after 0\.3625"):
        files.read(path, [30], fps=80)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(VideoError, match=r"a\.mp4: expected a (complete MP4 file|video stream)"):
        files.read(path, [9], fps=80)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.mp4"):
        files.read(path, [9], fps=80)


def test_damage_does_not_spoil_the_next_file(tmp_path):
    sound, damaged = write_video(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    data = fast_start(sound)
    damaged.write_bytes(data[:-900] + bytes(900))
    files = VideoFiles()
    assert read_number(files.read(damaged, [3], fps=80)[0]) == 3
    with pytest.raises(VideoError, match=r"b\.mp4: expected a (readable|whole) frame at 0\.7375"):
        files.read(damaged, [59], fps=80)
    np.testing.assert_array_equal(files.read(sound, range(60), fps=80), read_frames(sound, range(60), fps=80))


def test_it_travels_to_other_processes(tmp_path):
    path, files = write_video(tmp_path / "a.mp4"), VideoFiles(max_decoders=3)
    files.read(path, [0], fps=80)
    other = pickle.loads(pickle.dumps(files))  # noqa: S301
    np.testing.assert_array_equal(other.read(path, [5, 1], fps=80), files.read(path, [5, 1], fps=80))


# -- the loader above it -----------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(write_dataset):
    return LeRobotDataset(write_dataset(4)[0])


def make_loader(dataset, cache_frames=0, **settings):
    statistics = compute_statistics(dataset)
    normalizers = {name: Normalizer.from_statistics("minmax", statistics[name]) for name in ("action", "state")}
    return WindowLoader(
        dataset,
        WindowConfig(context=3, chunk=3, action_horizon=6, sample_n_frames=20),
        action=ActionTransform(normalizer=normalizers["action"]),
        state=normalizers["state"],
        batch_size=16,
        seed=0,
        cache_frames=cache_frames,
        **settings,
    )


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("size", [None, (32, 48)])
def test_batches_do_not_depend_on_the_number_of_threads(dataset, monkeypatch, threads, size):
    settings = {} if size is None else {"image_size": size, "preprocess": "resize"}
    kept = make_loader(dataset, cache_frames=1 << 30, **settings)
    loader = make_loader(dataset, **settings)
    assert kept.frames_in_memory and isinstance(loader._frames, FrameStore) and not loader.frames_in_memory
    monkeypatch.setattr(loader._frames, "_num_threads", threads)
    for step in (0, 3):
        batch, expected = loader.batch(step), kept.batch(step)
        assert batch.context.equal(expected.context) and batch.future.equal(expected.future)


@pytest.mark.parametrize("fault", ["gone", "truncated"])
def test_a_video_that_breaks_while_training_is_named(dataset, fault):
    loader = make_loader(dataset)
    loader.batch(0)
    path = dataset.video_path(2, "wrist")
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    expected = FileNotFoundError if fault == "gone" else VideoError
    with pytest.raises(expected, match=rf"episode 2, camera 'wrist': .*{path.name}"):
        for step in range(1, 5):
            loader.batch(step)
