"""Read LeRobot datasets in place: metadata, rows, exact frames.

What can be checked without decoding is checked when a dataset is opened (files, row counts, video lengths), so that
training does not stop hours later at a broken episode. `wamkit.data.inspect` looks deeper.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from wamkit.data import features as words
from wamkit.data.camera_names import CAMERAS, camera_keys, with_renamed
from wamkit.data.episode_stats import Stats, from_columns
from wamkit.data.file_facts import data_file_facts, no_data, read_footer, video_file_facts
from wamkit.data.info import LAYOUTS, read_info
from wamkit.data.layout import DatasetError, EpisodePlace, EpisodeRecord, Layout
from wamkit.data.video import VideoError, VideoReader, require_length
from wamkit.data.video_files import VideoFiles
from wamkit.spec import RobotSpec

_READERS = 8

__all__ = ["DatasetError", "EpisodeRecord", "LeRobotDataset", "VideoError"]


class LeRobotDataset:
    """A LeRobot dataset on disk, opened for reading. Methods may be called from several threads or processes.

    Args:
        root: folder that holds `meta/`, `data/` and `videos/`.
        check: compare every data file and video header with the metadata now; inspection tools switch it off.
        ignored: episodes that nobody reads; their files may be missing or damaged.
        num_episodes: in place of what `info.json` says; for looking at a dataset in which that is wrong.
        renamed: the dataset's own name of a camera -> the name to read it under, in place of what `info.json` says.

    Raises:
        FileNotFoundError: no such folder, not a dataset, or a file is missing.
        DatasetError: unsupported version, or metadata and data disagree.
        VideoError: a video is shorter than its episodes or cannot be opened.
        ValueError: `renamed` names a camera that the dataset has not, or gives two the same name.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        check: bool = True,
        ignored: Collection[int] = (),
        num_episodes: int | None = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.info: dict[str, Any] = read_info(self.root)
        if renamed is not None:
            self.info = with_renamed(self.info, renamed)
        if num_episodes is not None:
            self.info["total_episodes"] = num_episodes
        self._stored = words.stored_names(self.info["features"])
        self.features: dict[str, dict[str, Any]] = {
            key: self.info["features"][stored] for key, stored in self._stored.items()
        }
        self._layout: Layout = LAYOUTS[self.info["codebase_version"]](self.root, self.info)
        self._camera_keys = camera_keys(self.features, self.wamkit.get(CAMERAS, {}))
        self._robot: tuple[Any, RobotSpec] | None = None
        self._fingerprint: str | None = None
        self._facts: tuple[list[Any], dict[str, list[Any]]] | None = None
        self._videos = VideoFiles()
        self._ignored = frozenset(ignored)
        if check:
            self._check()

    @property
    def fps(self) -> float:
        """Frames, and rows, per second."""
        return float(self.info["fps"])

    @property
    def robot(self) -> RobotSpec | None:
        """The robot that was recorded, or `None` for a dataset that does not say.

        Raises:
            DatasetError: its description is malformed.
        """
        stored = self.wamkit.get("robot")
        if stored is None:
            return None
        if self._robot is None or self._robot[0] is not stored:  # read once, for it is asked for all the time
            try:
                self._robot = stored, RobotSpec.from_dict(stored)
            except ValueError as error:
                where = f"{self.root / words.INFO}, {words.WAMKIT}.robot"
                raise DatasetError(f"{where}: {error}; correct it there") from error
        return self._robot[1]

    @property
    def wamkit(self) -> dict[str, Any]:
        """Our part of `info.json`: robot, names of cameras, video settings, notes, settings of added columns."""
        return self.info.get(words.WAMKIT, {})

    @property
    def episodes(self) -> list[EpisodeRecord]:
        """One record per episode, in order."""
        return self._layout.episodes

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @property
    def ignored(self) -> frozenset[int]:
        """Episodes whose files were not looked at; reading one may fail."""
        return self._ignored

    @property
    def num_frames(self) -> int:
        """Number of rows over all episodes."""
        return sum(episode.length for episode in self.episodes)

    @property
    def tasks_path(self) -> Path:
        """The table that `read_tasks` reads."""
        return self._layout.tasks_path

    def read_tasks(self) -> list[str]:
        """The sentences that `task_index` counts.

        Raises:
            FileNotFoundError: the table is missing.
            DatasetError: it cannot be read, or does not number the sentences from 0.
        """
        return self._layout.read_tasks()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names (`observation.images.` cut off, unless `info.json` gives another), in the features' order."""
        return tuple(self._camera_keys)

    def camera_key(self, camera: str) -> str:
        """Feature key of a camera.

        Raises:
            ValueError: the dataset has no such camera.
        """
        if camera not in self._camera_keys:
            raise ValueError(f"dataset {self.root} has the cameras {list(self.cameras)}, not {camera!r}")
        return self._camera_keys[camera]

    def camera_name(self, key: str) -> str:
        """Name of the camera of a feature.

        Raises:
            ValueError: the feature is no camera.
        """
        for name, own in self._camera_keys.items():
            if own == key:
                return name
        raise ValueError(f"dataset {self.root} has the camera features {list(self._camera_keys.values())}, not {key!r}")

    def stored_name(self, feature: str) -> str:
        """The name that a feature has in the files: `actions` of others is our `action`.

        Raises:
            DatasetError: the dataset has no such feature.
        """
        if feature not in self._stored:
            raise DatasetError(f"dataset {self.root} has the features {list(self.features)}, not {feature!r}")
        return self._stored[feature]

    def columns(self, episode: int, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """An episode's rows, as stored.

        Args:
            episode: index.
            names: feature keys to read; all that have a column when `None`.

        Returns:
            Feature key -> `[T, *shape]`; `[T]` for shape (1,), except `action` and `observation.state`, which are
            always `[T, d]`; `d` is 0 for the state of a robot without state channels, of which there is no column.
            Strings come as an object array. Columns that `info.json` does not declare are ignored, and those of
            `features.OTHER_NAMES` have our names.

        Raises:
            DatasetError: a name is unknown, or the rows disagree with the metadata.
        """
        known = [key for key, feature in self.features.items() if not words.is_camera(feature)]
        is_stateless = words.STATE not in self.features and self.robot is not None and not self.robot.state
        known += [words.STATE] if is_stateless else []
        wanted = known if names is None else list(names)
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise DatasetError(f"dataset {self.root} has the columns {known}, not {unknown}; choose among those")
        record, place = self._record(episode), self.place(episode)
        # A file of one episode says by its name whose rows it holds.
        is_numbered = "episode_index" in known or not self._layout.is_one_per_file
        stored = [self._stored[name] for name in wanted if name in self._stored]
        table = self._rows(episode, [*stored, "episode_index"] if is_numbered else stored)
        owners = set(table["episode_index"].to_pylist()) if is_numbered else {episode}
        if owners != {episode}:
            raise DatasetError(
                f"{place.data}: expected rows {place.first_row} to {place.first_row + record.length - 1} to belong to "
                f"episode {episode}, got episodes {sorted(owners)}; the episode table does not fit the data: copy the "
                "dataset again"
            )
        empty = np.zeros((record.length, 0), dtype=np.float32)  # the state that there is not
        return {
            name: self._array(table[self._stored[name]], name, place.data) if name in self._stored else empty
            for name in wanted
        }

    def frames(self, episode: int, camera: str, indices: Sequence[int] | np.ndarray) -> UInt8[np.ndarray, "t h w 3"]:
        """Decode exactly the frames asked for.

        Args:
            episode: index.
            camera: a name in `cameras`.
            indices: frame numbers within the episode, in any order, repeats allowed; at least one.

        Raises:
            ValueError: unknown camera, or an index outside the episode.
            FileNotFoundError: the video is gone.
            VideoError: it is short or damaged.
        """
        record, place = self._record(episode), self.place(episode)
        key = self.camera_key(camera)
        wanted = [int(index) for index in indices]
        if not wanted or min(wanted) < 0 or max(wanted) >= record.length:
            raise ValueError(
                f"episode {episode} of {self.root}: expected frame indices from 0 to {record.length - 1}, got {wanted}"
            )
        if self.features[key]["dtype"] == "image":
            return self._embedded_images(episode, key, wanted)
        video = place.videos[key]
        try:
            return self._videos.read(video.path, wanted, fps=self.fps, start_s=video.start_s, length=record.length)
        except (FileNotFoundError, VideoError) as error:
            raise type(error)(f"episode {episode}, camera {camera!r}: {error}") from error

    def place(self, episode: int) -> EpisodePlace:
        """Which part of which files an episode is."""
        return self._layout.place(self._record(episode).index)

    def video_path(self, episode: int, camera: str) -> Path | None:
        """The file that holds an episode's frames; `None` when they are embedded in the data file."""
        video = self.place(episode).videos.get(self.camera_key(camera))
        return None if video is None else video.path

    def data_path(self, episode: int) -> Path:
        """The Parquet file that holds an episode's rows."""
        return self.place(episode).data

    def episode_statistics(self) -> list[dict[str, Stats]]:
        """Per episode, the statistics that were stored when it was recorded; empty for a dataset that has none.

        Raises:
            DatasetError: the episode table cannot be read.
        """
        ours = {stored: key for key, stored in self._stored.items()}
        rows = (from_columns(row) for row in self._layout.statistics_rows())
        return [{ours.get(key, key): stats for key, stats in row.items()} for row in rows]

    def fingerprint(self) -> str:
        """A hash of what is in the dataset when it is first asked for.

        It covers features, robot, settings of added columns, episodes and their statistics; of the recorded columns
        what the footers of the data files say; of videos both ends. Nothing is read through, so a change that leaves
        all of these alone goes unnoticed. It depends neither on where the folder is nor on what added columns hold,
        whose settings stand for them.

        Raises:
            FileNotFoundError: a file is missing.
            DatasetError: a data file cannot be read.
        """
        if self._fingerprint is None:
            self._fingerprint = self._content_hash()
        return self._fingerprint

    def recorded_fingerprint(self) -> str:
        """A hash of what was recorded, as `fingerprint` sees it, whatever columns were added since.

        Raises:
            FileNotFoundError: a file is missing.
            DatasetError: a data file cannot be read.
        """
        facts = [[episode.length for episode in self.episodes], *self._file_facts()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _content_hash(self) -> str:
        features = {
            key: {part: value for part, value in feature.items() if part != "info"}
            for key, feature in self.features.items()
        }
        own = {key: value for key, value in self.wamkit.items() if key not in ("notes", words.SOURCES)}
        episodes = [[episode.length, episode.tasks, episode.metadata] for episode in self.episodes]
        facts = [self.fps, features, own, episodes, self._layout.statistics_rows(), *self._file_facts()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _file_facts(self) -> tuple[list[Any], dict[str, list[Any]]]:
        """Of the data files, and of the videos of each feature, in the order of the episodes."""
        if self._facts is None:
            self._facts = self._read_file_facts()
        return self._facts

    def _read_file_facts(self) -> tuple[list[Any], dict[str, list[Any]]]:
        added = self.wamkit.get("columns", [])
        features = self.info["features"]
        recorded = [key for key, feature in features.items() if not words.is_video(feature) and key not in added]
        places = [self.place(record.index) for record in self.episodes]
        data = list(dict.fromkeys(place.data for place in places))
        keys = [key for key, feature in self.features.items() if words.is_video(feature)]
        videos = {key: list(dict.fromkeys(place.videos[key].path for place in places)) for key in keys}
        used = [self.place(record.index) for record in self.episodes if record.index not in self._ignored]
        needed = {place.data for place in used} | {video.path for place in used for video in place.videos.values()}

        def facts(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
            return lambda path: read(path) if path in needed else _facts_or_none(read, path)

        with ThreadPoolExecutor(max_workers=_READERS) as pool:
            return (
                list(pool.map(facts(lambda path: data_file_facts(path, recorded)), data)),
                {key: list(pool.map(facts(video_file_facts), paths)) for key, paths in videos.items()},
            )

    def _record(self, episode: int) -> EpisodeRecord:
        if not 0 <= episode < self.num_episodes:
            wanted = f"an episode from 0 to {self.num_episodes - 1}" if self.num_episodes else "a dataset with episodes"
            raise ValueError(f"dataset {self.root}: expected {wanted}, got {episode} of {self.num_episodes}")
        return self.episodes[episode]

    def _rows(self, episode: int, names: Sequence[str]) -> pa.Table:
        """The episode's rows of a data file, reading only the row groups that hold them."""
        record, place = self._record(episode), self.place(episode)
        first, last = place.first_row, place.first_row + record.length
        try:
            with pq.ParquetFile(place.data) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
                ends = np.cumsum(sizes)
                groups = [g for g, end in enumerate(ends) if end > first and end - sizes[g] < last]
                skipped = int(ends[groups[0]] - sizes[groups[0]]) if groups else 0
                table = file.read_row_groups(groups, columns=list(dict.fromkeys(names)))
        except FileNotFoundError:
            raise no_data(place.data) from None
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(
                f"{place.data}: expected a complete Parquet file, got one that cannot be read ({error}); copy it again"
            ) from error
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise DatasetError(f"{place.data}: expected the columns {missing}, found {table.column_names}")
        table = table.slice(first - skipped, record.length)
        if len(table) != record.length:
            raise DatasetError(
                f"{place.data}: expected {record.length} rows of episode {episode} from row {first}, got {len(table)}; "
                "the file is shorter than the episode table says, copy it again"
            )
        return table

    def _array(self, column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
        shape = tuple(self.features[name]["shape"])
        if column.null_count:
            raise DatasetError(f"{path}: column {name!r}: expected no empty cells, got {column.null_count}")
        values = column.combine_chunks()
        while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
            values = values.flatten()
        expected = len(column) * int(np.prod(shape))
        if len(values) != expected:
            raise DatasetError(
                f"{path}: column {name!r}: expected shape {list(shape)} in every row ({expected} numbers), "
                f"got {len(values)} numbers in {len(column)} rows; correct the feature's shape or record again"
            )
        array = values.to_numpy(zero_copy_only=False)
        if name in (words.ACTION, words.STATE):
            return array.reshape(len(column), -1)
        return array if shape == (1,) else array.reshape(len(column), *shape)

    def _embedded_images(self, episode: int, key: str, indices: list[int]) -> np.ndarray:
        cells = self._rows(episode, [key])[key]
        images = []
        for index in indices:
            cell = cells[index].as_py() or {}
            if not cell.get("bytes"):
                raise DatasetError(
                    f"{self.data_path(episode)}: episode {episode}, frame {index}, {key}: expected the bytes of an "
                    f"image, got {cell.get('path') or 'nothing'!r}; embed the images into the data files"
                )
            try:
                images.append(np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")))
            except OSError as error:
                raise DatasetError(
                    f"{self.data_path(episode)}: episode {episode}, frame {index}, {key}: expected a readable image, "
                    f"got damage ({error}); copy the file again"
                ) from error
        return np.stack(images)

    def _check(self) -> None:
        total = int(self.info["total_frames"])
        if self.num_frames != total:
            raise DatasetError(
                f"{self.root / words.INFO}: expected total_frames to be the episodes' {self.num_frames} rows, "
                f"got {total}; copy the metadata again"
            )
        rows: dict[Path, int] = {}
        frames: dict[Path, int] = {}
        for record in self.episodes:
            if record.index in self._ignored:
                continue
            place = self.place(record.index)
            rows[place.data] = max(rows.get(place.data, 0), place.first_row + record.length)
            for video in place.videos.values():
                end = round(video.start_s * self.fps) + record.length
                frames[video.path] = max(frames.get(video.path, 0), end)
        for path, expected in rows.items():
            _check_rows(path, expected, is_whole=self._layout.is_one_per_file)
        # Opening a file is mostly waiting; threads make a thousand videos cost a fraction of a second.
        with ThreadPoolExecutor(max_workers=_READERS) as pool:
            list(pool.map(_check_video, frames, frames.values()))


def _facts_or_none(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except (OSError, DatasetError):
        return None


def _check_rows(path: Path, expected: int, *, is_whole: bool) -> None:
    found = read_footer(path).num_rows
    if found < expected or (is_whole and found != expected):
        compared = "shorter" if found < expected else "longer"
        raise DatasetError(
            f"{path}: expected {expected} rows, got {found}; it is {compared} than the episode table says, copy it "
            "again"
        )


def _check_video(path: Path, expected: int) -> None:
    with VideoReader(path) as reader:
        require_length(reader.info, path, num_frames=expected)
