"""A recipe's result: one complete, frozen description of a training run; importing this module loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wamkit.data.image_settings import ColorJitter
from wamkit.model_config import ModelConfig
from wamkit.spec import Preprocess
from wamkit.training.stage import TrainStage


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which windows of which datasets a model is trained on.

    Args:
        root: LeRobot dataset; this or `roots` has to be set.
        roots: several datasets of one robot, mixed.
        weights: share of the windows drawn from each of `roots`, on any scale; by default every window of all of them
            is drawn equally often.
        episodes: trained on: numbers and ranges as 7 0:40 60: (0:40 are 0 to 39); of one of several datasets
            FOLDER_NAME=0:40, of each of them without a name. By default all. What a dataset's
            meta/wamkit_exclude.json lists is always left out.
        tasks: sentences of the episodes trained on; by default all.
        split: train on one part of each dataset as `wamkit data split` parts it: `train` leaves out what `val_ind` and
            `val_ood` measure on.
        cameras: cameras of the datasets that the model sees, in view order; by default all.
        statistics: file of statistics to normalize with, in place of those of the data: wamkit's own, a policy's
            folder, openpi's norm_stats.json or WAV's. What it lacks (values, differences) is computed from
            the data.
        statistics_entry: which statistics of a WAV file, as libero_eef; needed when it holds several.
        pick: how memory frames are chosen; `spaced` as the control loop has them, `random` as published.
        action_offset: 0 pairs an action with the observation recorded beside it, 1 is the published lead of one row.
        first_row: 0 uses every row of an episode, 1 leaves out the first as the published code does.
        sample_n_frames: rows that `random` and `uniform` memory may reach back.
        normalization: of states and actions.
        action_type: how the network represents actions; `delta` and `relative` leave grippers absolute.
        action_targets: state channels that the action channels (grippers apart) are targets of, in order; by default
            those of the same name. `delta` and `relative` need them.
        preprocess: how frames that are not of the model's size are brought to it, in training and by the policy:
            `resize` stretches them, `center_crop_resize` cuts off what is too long, `exact` refuses them.
        random_crop: train on a part of each view, drawn anew for each window: sides of 7/8 or more.
        color_jitter: random changes of colour in training; off by default.
        cache: folder of latents or token ids and embedded sentences from `wamkit data encode`, read in place of frames;
            pictures have to be left as they are then.
        cache_dtype: what latents are kept as; `bfloat16` takes half the room and rounds them. Token ids are whole
            numbers whatever it says.
        workers: processes that read batches where frames are decoded for each; by default one per core of a training
            process, up to 8. 0 reads in threads. Changes no number.
    """

    root: Path = Path()
    roots: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    episodes: tuple[int | str, ...] = ()
    tasks: tuple[str, ...] = ()
    split: Literal["all", "train", "val_ind", "val_ood"] = "all"
    cameras: tuple[str, ...] = ()
    statistics: Path = Path()
    statistics_entry: str = ""
    pick: Literal["random", "uniform", "spaced"] = "spaced"
    action_offset: int = 0
    first_row: int = 0
    sample_n_frames: int = 500
    normalization: Literal["minmax", "meanstd"] = "minmax"
    action_type: Literal["absolute", "delta", "relative"] = "absolute"
    action_targets: tuple[str, ...] = ()
    preprocess: Preprocess = "exact"
    random_crop: bool = False
    color_jitter: ColorJitter = field(default_factory=ColorJitter)
    cache: Path = Path()
    cache_dtype: Literal["float32", "bfloat16"] = "float32"
    workers: int | None = None

    @property
    def all_roots(self) -> tuple[Path, ...]:
        """The datasets; empty when none is set."""
        return self.roots or (() if self.root == Path() else (self.root,))


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights that training starts from.

    Args:
        path: a safetensors file, an index of shards, or a folder with either; a policy folder is one. Without it all
            weights are fresh.
        profile: what kind of weights they are, by the names of the model's family, which says what they may lack; WAV:
            exact, ltx, ge_base, ge_act, wav_video, wav_value.
        may_resize: modules whose tensors may differ in shape and then start fresh, beside those of the profile.
    """

    path: Path = Path()
    profile: str = "exact"
    may_resize: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Errors on episodes that are held out of training, measured while it runs.

    Args:
        every: steps between measurements, besides one at the end of each stage; 0 never measures, and then only
            named episodes can be held out.
        episodes: held out, written as in data.episodes, also such that data.episodes leaves out; by default a share.
        fraction: share of each dataset's episodes that is held out, drawn by the run's seed, when none are named; the
            same episodes whatever else is trained on.
        num_windows: drawn once from the held-out episodes.
        num_steps: denoising steps.
    """

    every: int = 0
    episodes: tuple[int | str, ...] = ()
    fraction: float = 0.0
    num_windows: int = 32
    num_steps: int = 10

    def __post_init__(self) -> None:
        if self.every < 0 or not 0 <= self.fraction < 1 or self.num_windows < 1 or self.num_steps < 1:
            raise ValueError(
                "validation: expected every >= 0, fraction in [0, 1), num_windows >= 1 and num_steps >= 1, got "
                f"{self.every}, {self.fraction}, {self.num_windows} and {self.num_steps}"
            )
        if self.every and not self.episodes and not self.fraction:
            raise ValueError("validation: expected episodes to hold out; set validation.episodes or fraction")
        if self.fraction and not self.every:
            raise ValueError(
                f"validation: a fraction of {self.fraction:g} is held out of training, but validation.every is 0, so "
                "that nothing would be measured on it; set validation.every, or leave validation.fraction at 0"
            )
        if self.episodes and self.fraction:
            raise ValueError("validation: expected either episodes or a fraction of them, got both")

    @property
    def holds_out(self) -> bool:
        """Whether training leaves out some episodes."""
        return bool(self.episodes or self.fraction)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training run is made of.

    Args:
        data: dataset and windows.
        output: run folder, has to be set; the trained policy ends up in its `policy/`.
        model: sizes and geometry.
        initial: weights to start from.
        validation: what is measured while training runs; nothing by default.
        stages: in the order they run.
        execution_horizon: actions of each chunk meant to be run before the policy is asked again.
        seed: of every draw.
        save_every: steps between checkpoints, of which the newest two and the last of each stage stay.
        keep_policy_every: steps between checkpoints that stay as policies, to choose among (`wamkit select`); 0 keeps
            none of them.
        device: where the model is trained; `auto` takes a GPU if there is one.
        precision: `bf16` computes in bf16 with fp32 weights, moments and gradient averages.
        activation_checkpointing: keep only the inputs of each block for the backward pass and compute the rest again;
            takes less memory and a third more time.
    """

    model: ModelConfig
    stages: tuple[TrainStage, ...]
    data: DataConfig = DataConfig()
    initial: InitialWeights = InitialWeights()
    validation: ValidationConfig = ValidationConfig()
    output: Path = Path()
    execution_horizon: int = 8
    seed: int = 0
    save_every: int = 200
    keep_policy_every: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: bool = False
