"""Frame-exact video: what is asked for is what comes, or an error names file, expected and got."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from wamkit.data.synthetic import synthetic_episodes
from wamkit.data.video import VideoError, VideoReader, VideoSettings, encode_video, read_frames, require_length
from wamkit.data.video_files import VideoFiles


def counting_frames(num: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Frames that carry their number as eight black or white bars, which no codec confuses, over a moving gradient."""
    frames = np.zeros((num, height, width, 3), np.uint8)
    ramp = np.linspace(40, 200, width)
    for number in range(num):
        frames[number] = np.roll(ramp, number)[None, :, None]
        bits = np.unpackbits(np.array([number], np.uint8)) * 255
        frames[number, : height // 4] = np.repeat(bits, width // 8)[None, :, None]
    return frames


def read_number(frame: np.ndarray) -> int:
    """The number a frame of `counting_frames` carries."""
    height, width = frame.shape[:2]
    bits = frame[: height // 4].mean((0, 2)).reshape(8, width // 8).mean(1) > 127
    return int(np.packbits(bits)[0])


@pytest.fixture(params=["one file", "many files"])
def read(request):
    """Both ways to read frames: what one gives or refuses, the other does."""
    return read_frames if request.param == "one file" else VideoFiles().read


def write_video(path: Path, num: int = 60, fps: int = 80, **settings) -> Path:
    path.write_bytes(encode_video(counting_frames(num), fps=fps, settings=VideoSettings(**settings)))
    return path


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_every_frame_comes_back_by_index(read, tmp_path, codec):
    path = write_video(tmp_path / "a.mp4", codec=codec)
    frames = read(path, range(60), fps=80, length=60)
    assert frames.shape == (60, 64, 64, 3) and frames.dtype == np.uint8
    assert [read_number(frame) for frame in frames] == list(range(60))
    assert np.abs(frames.astype(int) - counting_frames(60)).mean() < 6


@pytest.mark.parametrize("interval", [1, 2, 10, 250])
def test_random_access_equals_decoding_in_order(read, tmp_path, interval):
    path = write_video(tmp_path / "a.mp4", keyframe_interval=interval)
    straight = read(path, range(60), fps=80)
    rng = np.random.default_rng(0)
    for _ in range(10):
        indices = [int(i) for i in rng.integers(0, 60, size=7)]
        np.testing.assert_array_equal(read(path, indices, fps=80), straight[indices])


def test_reordered_frames_are_found_exactly(read, tmp_path):
    # Encoders with B-frames store frames out of order, and seeking may land behind the frame asked for.
    path = tmp_path / "b.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "24", "bf": "3", "preset": "medium"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for index, pixels in enumerate(counting_frames(90)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for index in range(90):
        assert read_number(read(path, [index], fps=30)[0]) == index


def test_indices_may_repeat_and_come_in_any_order(read, tmp_path):
    path = write_video(tmp_path / "a.mp4")
    frames = read(path, [59, 3, 3, 40, 0], fps=80)
    assert [read_number(frame) for frame in frames] == [59, 3, 3, 40, 0]


def test_an_episode_may_start_inside_the_file(read, tmp_path):
    path = write_video(tmp_path / "a.mp4", fps=30)
    frames = read(path, [0, 5, 9], fps=30, start_s=20 / 30, length=40)
    assert [read_number(frame) for frame in frames] == [20, 25, 29]


def test_encoding_the_same_frames_gives_the_same_bytes():
    settings = VideoSettings()
    first, second = (encode_video(counting_frames(20), fps=80, settings=settings) for _ in range(2))
    assert first == second
    assert first != encode_video(counting_frames(20), fps=80, settings=VideoSettings(crf=40))


def test_quality_and_keyframes_follow_the_settings(tmp_path):
    sizes = [write_video(tmp_path / f"{crf}.mp4", crf=crf).stat().st_size for crf in (10, 23, 45)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1.5 * sizes[2]
    path = write_video(tmp_path / "g.mp4", keyframe_interval=5)
    with av.open(str(path)) as container:
        keys = [index for index, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys == list(range(0, 60, 5))


def test_header_says_what_was_encoded(tmp_path):
    with VideoReader(write_video(tmp_path / "a.mp4")) as reader:
        info = reader.info
        assert reader.count_frames() == 60
    assert (info.num_frames, info.fps, info.height, info.width, info.codec) == (60, 80.0, 64, 64, "h264")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(read, tmp_path, keep):
    path = write_video(tmp_path / "cut.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(VideoError, match=r"cut\.mp4: expected .*, got .*record the episode again or exclude"):
        read(path, [50], fps=80)


def fast_start(path: Path) -> bytes:
    """The same video with its index at the front, so that a cut file still opens."""
    target = path.with_name("front.mp4")
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                sink.mux(packet)
    return target.read_bytes()


def test_a_file_cut_behind_its_index_gives_the_whole_frames_only(read, tmp_path):
    path = write_video(tmp_path / "a.mp4")
    data = fast_start(path)
    path.write_bytes(data[: len(data) * 7 // 10])
    assert read_number(read(path, [10], fps=80)[0]) == 10
    with pytest.raises(VideoError, match=r"expected .*0\.6875.*got"):
        read(path, [55], fps=80)
    with VideoReader(path) as reader:
        require_length(reader.info, path, num_frames=60)  # the header alone does not show the cut
        with pytest.raises(VideoError, match=r"expected 60 readable frames, got \d+ before damaged data"):
            reader.count_frames()


def test_damaged_bytes_are_noticed(tmp_path):
    path = write_video(tmp_path / "a.mp4", keyframe_interval=10)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(np.random.default_rng(0).integers(0, 256, 400, dtype=np.uint8))
    path.write_bytes(bytes(data))
    with VideoReader(path) as reader, pytest.raises(VideoError, match=r"a\.mp4: expected 60 .*got"):
        reader.count_frames()


def test_a_short_video_is_refused_with_both_counts(read, tmp_path):
    path = write_video(tmp_path / "a.mp4", num=40)
    with pytest.raises(VideoError, match=r"expected 60 frames or more, got 40"):
        read(path, [0], fps=80, length=60)
    with pytest.raises(VideoError, match=r"expected a frame at 0\.7250.*40 frames announced.*got the end"):
        read(path, [58], fps=80)


def test_a_wrong_rate_is_refused_with_both_times(read, tmp_path):
    path = write_video(tmp_path / "a.mp4", fps=80)
    with pytest.raises(VideoError, match=r"expected a frame at 0\.033333 s, got frames at 0\.025000 s and 0\.037500 s"):
        read(path, [1], fps=30)


def test_missing_and_foreign_files_are_named(read, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        read(tmp_path / "none.mp4", [0], fps=80)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match=r"text\.mp4: expected a complete MP4 file"):
        read(tmp_path / "text.mp4", [0], fps=80)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="crf: expected 0 to 51"):
        VideoSettings(crf=60)
    with pytest.raises(ValueError, match="keyframe_interval: expected 1 or more, got 0"):
        VideoSettings(keyframe_interval=0)
    with pytest.raises(ValueError, match="even height and width for yuv420p, got 63x64"):
        encode_video(counting_frames(2, height=63), fps=80, settings=VideoSettings())
    odd = encode_video(counting_frames(2, height=63), fps=80, settings=VideoSettings(pixel_format="yuv444p"))
    assert len(odd) > 0
    with pytest.raises(ValueError, match="at least one frame"):
        encode_video(counting_frames(0), fps=80, settings=VideoSettings())


def test_equal_frames_give_equal_bytes() -> None:
    """Whatever lies in memory behind the frames; small sizes showed it, once in ten to a hundred times."""
    frames = synthetic_episodes(1, length=20, height=16, width=16)[0].video["front"]
    made = {encode_video(frames, fps=20, settings=VideoSettings()) for _ in range(60)}
    assert len(made) == 1
