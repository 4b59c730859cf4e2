"""Datasets as LeRobot's versions 2.0 and 2.1 lay them out, made of a recording in v3.0 that holds the same."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wamkit.data.lerobot import LeRobotDataset

INFO = "meta/info.json"
DATA = "data/chunk-{:03d}/episode_{:06d}.parquet"
VIDEO = "videos/chunk-{:03d}/{}/episode_{:06d}.mp4"
HUGGINGFACE = json.dumps({"info": {"features": {"action": {"length": 3, "_type": "Sequence"}}}})


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def edit_info(root: Path, **changes) -> None:
    info = json.loads((root / INFO).read_text()) | changes
    (root / INFO).write_text(json.dumps({key: value for key, value in info.items() if value is not None}))


def as_v2(source: Path, root: Path, version: str = "v2.1", *, chunk: int = 2, embedded: tuple[str, ...] = ()) -> Path:
    """Lay a recording out as v2 does.

    Args:
        source: a recording in v3.0.
        root: the folder to make.
        version: v2.0 or v2.1.
        chunk: episodes per folder.
        embedded: cameras whose frames lie in the data files, losslessly, as some v2.0 datasets have them.
    """
    dataset = LeRobotDataset(source)
    (root / "meta").mkdir(parents=True)
    videos = [name for name in dataset.cameras if name not in embedded]
    for record in dataset.episodes:
        table = pq.read_table(dataset.data_path(record.index))
        for name in ("action", "observation.state"):  # lists of no fixed length
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pa.array(table[name].to_pylist(), pa.list_(pa.float32())))
        for camera in embedded:
            frames = dataset.frames(record.index, camera, range(record.length))
            cells = [{"bytes": png(frame), "path": f"frame_{row:06d}.png"} for row, frame in enumerate(frames)]
            table = table.append_column(f"observation.images.{camera}", pa.array(cells))
        path = root / DATA.format(record.index // chunk, record.index)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata({"huggingface": HUGGINGFACE}), path)
        for camera in videos:
            path = root / VIDEO.format(record.index // chunk, f"observation.images.{camera}", record.index)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(dataset.video_path(record.index, camera), path)
    features = json.loads(json.dumps(dataset.features))
    for camera in embedded:
        features[f"observation.images.{camera}"] |= {"dtype": "image"}
        del features[f"observation.images.{camera}"]["info"]
    info = {
        "codebase_version": version,
        "robot_type": "square",
        "total_episodes": dataset.num_episodes,
        "total_frames": dataset.num_frames,
        "total_tasks": dataset.info["total_tasks"],
        "total_videos": len(videos) * dataset.num_episodes,
        "total_chunks": -(-dataset.num_episodes // chunk),
        "chunks_size": chunk,
        "fps": 20,
        "splits": {"train": f"0:{dataset.num_episodes}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    if not videos:
        del info["video_path"]
    (root / INFO).write_text(json.dumps(info))
    records = dataset.episodes
    write_lines(
        root / "meta/episodes.jsonl",
        [{"episode_index": record.index, "tasks": list(record.tasks), "length": record.length} for record in records],
    )
    tasks = enumerate(dataset.read_tasks())
    write_lines(root / "meta/tasks.jsonl", [{"task_index": index, "task": task} for index, task in tasks])
    whole = json.loads((source / "meta/stats.json").read_text())
    kept = ("mean", "std", "max", "min")
    if version == "v2.0":
        plain = {key: {name: stats[name] for name in kept} for key, stats in whole.items()}
        (root / "meta/stats.json").write_text(json.dumps(plain))
        return root
    lines = []
    for index, episode in enumerate(dataset.episode_statistics()):
        stats = {key: {name: one[name].tolist() for name in (*kept, "count")} for key, one in episode.items()}
        lines.append({"episode_index": index, "stats": stats})
    write_lines(root / "meta/episodes_stats.jsonl", lines)
    return root


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def require_same_content(found: LeRobotDataset, expected: LeRobotDataset) -> None:
    """Every number, every sentence, every pixel."""
    assert found.num_episodes == expected.num_episodes > 0
    assert (found.fps, found.cameras) == (expected.fps, expected.cameras)
    assert found.read_tasks() == expected.read_tasks()
    for record, other in zip(found.episodes, expected.episodes, strict=True):
        assert (record.length, record.tasks) == (other.length, other.tasks)
        columns, others = found.columns(record.index), expected.columns(record.index)
        assert columns.keys() == others.keys()
        for key, values in columns.items():
            assert values.dtype == others[key].dtype
            np.testing.assert_array_equal(values, others[key])
        for camera in found.cameras:
            frames = found.frames(record.index, camera, range(record.length))
            np.testing.assert_array_equal(frames, expected.frames(record.index, camera, range(record.length)))
