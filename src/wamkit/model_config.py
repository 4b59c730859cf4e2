"""What every family's configuration says, whatever it builds; importing this module loads no torch."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from wamkit.spec import PolicySpec, Preprocess, RobotSpec
from wamkit.typed import check_fields, check_least


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """Geometry of a model's windows: what data, training and policies need to know of it.

    A family's own configuration derives from it, adds what its network and codecs are made of, gives the fields the
    defaults it wants, and has `from_dict`, the inverse of `to_dict`.

    Args:
        num_views: cameras.
        image_size: pixels along one side of the square images.
        num_context: memory frames, the current one last.
        num_future: future frames, `future_stride` control steps apart.
        action_horizon: actions predicted at once.
        action_dim: control channels.
        state_dim: state channels.
        name: size name, for the record.
    """

    num_views: int
    image_size: int
    num_context: int
    num_future: int
    action_horizon: int
    action_dim: int
    state_dim: int
    name: str = "custom"

    def __post_init__(self) -> None:
        check_fields(self, "model")
        counts = ("num_views", "image_size", "num_context", "num_future", "action_horizon", "action_dim")
        check_least(self, "model", 1, *counts)
        check_least(self, "model", 0, "state_dim")

    @property
    @abstractmethod
    def family(self) -> str:
        """Name in the table of families."""

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that a stage can train, those of the family object's `parts()`."""

    @property
    @abstractmethod
    def codec_batches(self) -> int:
        """How many batches `fit_codecs` learns from; 0 where all codecs are pretrained."""

    @property
    def value_channels(self) -> int:
        """Width of a value vector; 0 for a model without values."""
        return 0

    @property
    def future_stride(self) -> int:
        """Control steps between two future frames, and from the current frame to the first."""
        return self.action_horizon // self.num_future

    @property
    def context_stride(self) -> int | None:
        """Control steps between two memory frames; `None` when they are those of the policy's calls."""
        return None

    @property
    def whole_windows(self) -> bool:
        """Whether it is trained only on windows that lie inside their episode as a whole."""
        return False

    @abstractmethod
    def codec_record(self) -> dict[str, Any]:
        """JSON-ready settings that decide what the codecs make of frames and sentences; a cache is made for them."""

    def codec_settings(self) -> dict[str, Any]:
        """What of `codec_record` must be alike for codecs to stand in for each other.

        Neither where pretrained ones lie nor how long others are fitted.
        """
        return self.codec_record()

    def with_pretrained(self, folder: str) -> ModelConfig:
        """The same model with its pretrained codecs in another folder.

        Raises:
            ValueError: it has no pretrained codecs.
        """
        raise ValueError(
            f"expected a model with pretrained codecs, {self.name!r} of family {self.family!r} has none; leave the "
            f"folder {folder} out"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` inverts it."""
        return dataclasses.asdict(self)

    def spec_for(
        self,
        robot: RobotSpec,
        *,
        execution_horizon: int,
        normalization: str,
        preprocess: Preprocess = "exact",
        tasks: tuple[str, ...] = (),
    ) -> PolicySpec:
        """The spec of a policy around a model of this configuration; `check_spec` says whether the robot fits.

        Args:
            robot: whose policy it is.
            execution_horizon: actions of each chunk meant to be run before the next call.
            normalization: name of the normalisation formula of state and actions.
            preprocess: how camera frames are brought to the model's size.
            tasks: sentences seen in training; empty when open.

        Raises:
            ValueError: a number out of its range.
        """
        return PolicySpec(
            family=self.family,
            robot=robot,
            num_context=self.num_context,
            action_horizon=self.action_horizon,
            execution_horizon=execution_horizon,
            normalization=normalization,
            tasks=tasks,
            image_size=None if preprocess == "exact" else (self.image_size, self.image_size),
            preprocess=preprocess,
            context_stride=self.context_stride,
        )

    def check_spec(self, spec: PolicySpec) -> None:
        """Refuse a spec that says other sizes than this configuration.

        A model that does not say how far apart its memory frames are takes them as the spec says.

        Args:
            spec: of a policy around a model of this configuration.

        Raises:
            ValueError: naming each size that differs.
        """
        robot = spec.robot
        stride = spec.context_stride if self.context_stride is None else self.context_stride
        seen = [spec.image_size] if spec.image_size else [(camera.height, camera.width) for camera in robot.cameras]
        sizes: dict[str, tuple[Any, Any]] = {
            "cameras (num_views)": (self.num_views, len(robot.cameras)),
            "state channels (state_dim)": (self.state_dim, len(robot.state)),
            "action channels (action_dim)": (self.action_dim, len(robot.action)),
            "frames of memory (num_context)": (self.num_context, spec.num_context),
            "control steps between two of them (context_stride)": (stride, spec.context_stride),
            "actions in a chunk (action_horizon)": (self.action_horizon, spec.action_horizon),
            "pixels of each picture (image_size)": ([(self.image_size, self.image_size)] * len(seen), seen),
        }
        differ = [f"{wanted} {what}, got {got}" for what, (wanted, got) in sizes.items() if wanted != got]
        if differ:
            raise ValueError(f"expected, as the model's configuration says, {'; '.join(differ)}")
