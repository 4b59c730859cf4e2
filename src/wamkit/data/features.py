"""The LeRobot vocabulary: keys, features of a robot, Arrow types. Shared by readers, writers and inspection.

Paths and Arrow types are those of v3.0, which is what we write.

Source: LeRobot dataset formats v2.0, v2.1 and v3.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from wamkit.data.video import VideoSettings
from wamkit.spec import ChannelSpec, RobotSpec

VERSION = "v3.0"
"""Of what we write."""
VERSIONS_V2 = ("v2.0", "v2.1")
INFO = "meta/info.json"
TASKS = "meta/tasks.parquet"
STATS = "meta/stats.json"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

ACTION = "action"
STATE = "observation.state"
IMAGES = "observation.images."
REWARD, DONE, SUCCESS = "next.reward", "next.done", "next.success"

OTHER_NAMES = {"actions": ACTION, "state": STATE, "state_value": "value"}
"""What WAV's public data and openpi's name the columns that training reads; a reader knows them by ours."""

WAMKIT = "wamkit"
"""Our key in `info.json`: the robot spec, video settings, notes of recorders, settings of added columns."""
SOURCES = "sources"
"""Below our key: of what recording each added column was computed."""
METADATA_COLUMN = "wamkit/metadata"
"""Our column of the episode table: a JSON object per episode (one type whatever the keys, so files can be joined)."""

INDEX_FEATURES = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def camera_key(camera: str) -> str:
    """Feature name of a camera."""
    return f"{IMAGES}{camera}"


def camera_name(key: str) -> str:
    """Camera name of a feature; a key outside `observation.images.` is its own name."""
    return key.removeprefix(IMAGES)


def stored_names(features: Mapping[str, Any]) -> dict[str, str]:
    """Our name of each feature -> its name in the files; they differ for `OTHER_NAMES` where ours is not taken."""
    return {
        OTHER_NAMES[key] if key in OTHER_NAMES and OTHER_NAMES[key] not in features else key: key for key in features
    }


def scalar_feature(dtype: str) -> dict[str, Any]:
    """Feature of one number per row; LeRobot gives it the shape (1,) and stores a plain scalar."""
    return {"dtype": dtype, "shape": [1], "names": None}


def vector_feature(channels: tuple[ChannelSpec, ...]) -> dict[str, Any]:
    """Feature of a float32 vector with one name per channel."""
    return {"dtype": "float32", "shape": [len(channels)], "names": [channel.name for channel in channels]}


def robot_features(
    robot: RobotSpec, *, fps: int, video: VideoSettings, has_outcome: bool = True
) -> dict[str, dict[str, Any]]:
    """The `features` of `info.json` for what a robot records; there is no state column for one without state channels.

    Args:
        robot: who records.
        fps: rows per second.
        video: how frames are encoded.
        has_outcome: whether reward and success are recorded.
    """
    features = {
        camera_key(camera.name): {
            "dtype": "video",
            "shape": [camera.height, camera.width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.fps": fps,
                "video.height": camera.height,
                "video.width": camera.width,
                "video.channels": 3,
                "video.codec": video.codec,
                "video.pix_fmt": video.pixel_format,
                "video.is_depth_map": False,
                "has_audio": False,
            },
        }
        for camera in robot.cameras
    }
    if robot.state:
        features[STATE] = vector_feature(robot.state)
    features[ACTION] = vector_feature(robot.action)
    if has_outcome:
        features[REWARD] = scalar_feature("float32")
    features[DONE] = scalar_feature("bool")
    if has_outcome:
        features[SUCCESS] = scalar_feature("bool")
    features["timestamp"] = scalar_feature("float32")
    features |= {key: scalar_feature("int64") for key in INDEX_FEATURES[1:]}
    return features


def is_camera(feature: Mapping[str, Any]) -> bool:
    """Whether a feature is pictures, in video files or embedded in the data files."""
    return feature.get("dtype") in ("video", "image")


def image_size(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a camera's feature; some v2 datasets put the channels first."""
    first, second, third = feature["shape"]
    names = feature.get("names")
    named_first = isinstance(names, list) and names[:1] in (["channel"], ["channels"])
    return (second, third) if named_first or (first == 3 and third != 3) else (first, second)


def is_video(feature: Mapping[str, Any]) -> bool:
    """Whether a feature lives in video files and has no column."""
    return feature.get("dtype") == "video"


def data_schema(features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Arrow schema of the data files: fixed-size lists for vectors, plain scalars for shape (1,), no video columns.

    Raises:
        ValueError: a feature has a dtype that Arrow does not know.
    """
    columns = [(key, arrow_type(feature)) for key, feature in features.items() if not is_video(feature)]
    return pa.schema(columns)


def arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    """Arrow type of a numeric feature of one or no axis beside time.

    Raises:
        ValueError: the dtype or the shape cannot be stored as a column.
    """
    names = {"float32": pa.float32(), "float64": pa.float64(), "int64": pa.int64(), "int32": pa.int32()}
    names |= {"bool": pa.bool_(), "uint8": pa.uint8(), "string": pa.string()}
    if feature["dtype"] not in names or len(feature["shape"]) != 1:
        raise ValueError(f"feature: expected a dtype in {sorted(names)} and one axis, got {dict(feature)}")
    value = names[feature["dtype"]]
    return value if list(feature["shape"]) == [1] else pa.list_(value, feature["shape"][0])


def episode_schema(features: Mapping[str, Mapping[str, Any]], statistics: Sequence[str]) -> pa.Schema:
    """Arrow schema of the episode table.

    Args:
        features: of the dataset.
        statistics: names of the statistics kept per feature, `count` among them.
    """
    columns: list[tuple[str, pa.DataType]] = [("episode_index", pa.int64()), ("tasks", pa.list_(pa.string()))]
    counts = ["length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"]
    columns += [(name, pa.int64()) for name in counts]
    for key in (key for key, feature in features.items() if is_video(feature)):
        columns += [(f"videos/{key}/{part}", pa.int64()) for part in ("chunk_index", "file_index")]
        columns += [(f"videos/{key}/{part}", pa.float64()) for part in ("from_timestamp", "to_timestamp")]
    for key, feature in features.items():
        if feature["dtype"] == "string":
            continue
        whole = {"count", "min", "max"} if str(feature["dtype"]).startswith("int") else {"count"}
        depth = 3 if is_camera(feature) else max(1, len(feature["shape"]))
        for name in statistics:
            kind = pa.int64() if name in whole else pa.float64()
            for _ in range(1 if name == "count" else depth):
                kind = pa.list_(kind)
            columns.append((f"stats/{key}/{name}", kind))
    columns += [(f"meta/episodes/{part}", pa.int64()) for part in ("chunk_index", "file_index")]
    return pa.schema([*columns, (METADATA_COLUMN, pa.string())])


def tasks_table(tasks: list[str]) -> pa.Table:
    """`meta/tasks.parquet`: the sentence is a pandas index (row i is task i), as LeRobot writes and reads it."""
    columns = {"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())}
    text = {"pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    number = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index"} | number,
            {"name": "task", "field_name": "task"} | text,
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    return pa.table(columns).replace_schema_metadata({"pandas": json.dumps(pandas)})
