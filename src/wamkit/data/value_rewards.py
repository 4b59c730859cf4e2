"""What a step of a demonstration earns, and what the steps from it on earn together.

Arrays only: settings and formulas of the dense reward (per-arm and third-person terms) and of the sparse one.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wamkit.data.ssim import likeness_to_target
from wamkit.spec import RobotSpec

_WRIST = re.compile(r"wrist|hand|gripper|eef", re.IGNORECASE)

TERMS: Final = (
    "wrist_mse",
    "wrist_ssim",
    "third_person_mse",
    "third_person_ssim",
    "state_proximity",
    "state_velocity",
    "state_acceleration",
    "action_velocity",
    "action_acceleration",
)
"""Rows of the reward table in order; those of the third person have one component, the others one per arm."""


@dataclass(frozen=True, kw_only=True)
class ArmChannels:
    """Where one arm is in the robot's vectors.

    Args:
        name: suffix of its components' names; empty for the only arm.
        wrist_camera: the camera it carries.
        state: its channels of the state.
        action: its channels of the action.
    """

    name: str
    wrist_camera: str
    state: tuple[int, ...]
    action: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DenseValueSettings:
    """The dense reward and its discounted return. What the paper leaves open is a setting here, and recorded.

    Args:
        third_person: camera of the third-person terms.
        arms: one or more, left before right; each adds 7 components to the third person's 2.
        gamma: discount per step.
        horizon: H, further steps that a return counts; `None` counts to the end of the episode.
        components: whether component channels hold discounted `returns` or the steps' own `rewards`; the last channel
            is the return of the weighted sum either way.
        image_size: both sides in pixels that images are resized to before they are compared; `None` compares them as
            they are recorded, some twenty times faster for 64 px.
        pixel_range: largest pixel value in the squared error.
        mse_rate: factor of the squared error in the exponent.
        ssim_window: side of the Gaussian window in pixels.
        ssim_sigma: its standard deviation in pixels.
        likeness_weight: weight, before division by the number of components, of images and of proximity.
        state_weight: the same of the state's velocity and acceleration.
        action_weight: the same of the action's.
        component_weights: weight of each component in the total, in the order of the components, in place of the three
            above and undivided; empty leaves it to them.
        order: of the components. `table`: row by row of the reward table, left before right. `arms`: all of the left
            arm, all of the right arm, then the third person's.

    Source: WAV 4.1 of the specification, with the recommended defaults of 4.2.
    """

    third_person: str
    arms: tuple[ArmChannels, ...]
    gamma: float = 0.99
    horizon: int | None = None
    components: Literal["returns", "rewards"] = "returns"
    image_size: int | None = 256
    pixel_range: float = 255.0
    mse_rate: float = 0.01
    ssim_window: int = 11
    ssim_sigma: float = 1.5
    likeness_weight: float = 1.0
    state_weight: float = -1.0
    action_weight: float = -0.1
    component_weights: tuple[float, ...] = ()
    order: Literal["table", "arms"] = "table"

    def __post_init__(self) -> None:
        _require_discount(self.gamma, self.horizon)
        if not self.arms or len({arm.name for arm in self.arms}) != len(self.arms):
            raise ValueError(f"dense values: expected 1 or more arms of distinct names, got {self.arms}")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(
                f"dense values: expected image_size of 1 pixel or more, or None (--image-size 0) to compare images as "
                f"they are, got {self.image_size}"
            )
        if self.components not in ("returns", "rewards"):
            raise ValueError(f"dense values: expected components 'returns' or 'rewards', got {self.components!r}")
        if self.order not in ("table", "arms"):
            raise ValueError(f"dense values: expected order 'table' or 'arms', got {self.order!r}")
        names = self.component_names
        if self.component_weights and len(self.component_weights) != len(names):
            raise ValueError(
                f"dense values: expected a weight for each of the {len(names)} components {list(names)}, got "
                f"{len(self.component_weights)}"
            )

    @classmethod
    def from_robot(cls, robot: RobotSpec, **overrides: Any) -> DenseValueSettings:
        """Settings with the cameras' and channels' roles read off a robot.

        Cameras whose name speaks of a wrist, hand or gripper are an arm's; the first other one is the third person. If
        no name speaks, the second of two cameras is the wrist's. Two wrist cameras mean two arms that share state and
        action half and half, the left one first.

        Args:
            robot: of the dataset.
            overrides: settings that replace the defaults.

        Raises:
            ValueError: the roles cannot be read off; the message says which settings to give.
        """
        names = robot.camera_names
        wrists = [name for name in names if _WRIST.search(name)]
        others = [name for name in names if name not in wrists]
        if not wrists and len(names) == 2:
            wrists, others = [names[1]], [names[0]]
        num_arms = len(wrists)
        if num_arms not in (1, 2) or not others or len(robot.state) % num_arms or len(robot.action) % num_arms:
            raise ValueError(
                "dense values: expected one third-person camera and a wrist camera for each of one or two arms of "
                f"equal width, got cameras {list(names)}, {len(robot.state)} state and {len(robot.action)} action "
                "channels; give third_person and arms, or choose sparse values"
            )
        wrists.sort(key=lambda name: ("right" in name.lower(), names.index(name)))
        state, action = len(robot.state) // num_arms, len(robot.action) // num_arms
        arms = tuple(
            ArmChannels(
                name=name,
                wrist_camera=wrist,
                state=tuple(range(number * state, (number + 1) * state)),
                action=tuple(range(number * action, (number + 1) * action)),
            )
            for number, (name, wrist) in enumerate(
                zip(("left", "right") if num_arms == 2 else ("",), wrists, strict=True)
            )
        )
        return cls(**{"third_person": others[0], "arms": arms, **overrides})

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras whose frames are compared."""
        return tuple(dict.fromkeys((*(arm.wrist_camera for arm in self.arms), self.third_person)))

    @property
    def component_names(self) -> tuple[str, ...]:
        """Components in `order`."""
        return tuple(self._table[index] for index in self.positions)

    @property
    def positions(self) -> tuple[int, ...]:
        """Where each component stands in the reward table."""
        names = self._table
        if self.order == "table":
            return tuple(range(len(names)))
        groups = [f"_{arm.name}" if arm.name else "" for arm in self.arms]
        third_person = [index for index, name in enumerate(names) if name.startswith("third_person")]
        own = [
            index
            for suffix in groups
            for index, name in enumerate(names)
            if index not in third_person and name in {f"{term}{suffix}" for term in TERMS}
        ]
        return (*own, *third_person)

    @property
    def _table(self) -> tuple[str, ...]:
        """Components row by row of the reward table, left before right."""
        suffixes = [f"_{arm.name}" if arm.name else "" for arm in self.arms]
        each = {term: [""] if term.startswith("third_person") else suffixes for term in TERMS}
        return tuple(f"{term}{suffix}" for term in TERMS for suffix in each[term])

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Components, then the total."""
        return (*self.component_names, "total")

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each component in the total."""
        if self.component_weights:
            return self.component_weights
        names = self.component_names
        by_term = dict.fromkeys(TERMS, self.likeness_weight)
        by_term |= {"state_velocity": self.state_weight, "state_acceleration": self.state_weight}
        by_term |= {"action_velocity": self.action_weight, "action_acceleration": self.action_weight}
        term_of = (next(term for term in TERMS if name.startswith(term)) for name in names)
        return tuple(by_term[term] / len(names) for term in term_of)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with what follows from the settings spelt out; `settings_from_dict` inverts it."""
        derived = {"channels": list(self.channel_names), "weights": list(self.weights)}
        return {"method": "dense", **asdict(self), **derived}


@dataclass(frozen=True, kw_only=True)
class SparseValueSettings:
    """Reward -1 for every step until the task is solved, 0 from then on; needs no images and takes failures.

    Args:
        gamma: discount per step.
        horizon: H, further steps that a return counts; `None` counts to the end of the episode.
        failure: what follows the last row of an episode that was never solved. `endless`: -1 for ever, so that it is
            worth -1 / (1 - gamma) throughout; `ends`: nothing, as if it had been cut off solved.

    Source: WAV 4.2 of the specification; Differs: `failure`.
    """

    gamma: float = 0.99
    horizon: int | None = None
    failure: Literal["endless", "ends"] = "endless"

    def __post_init__(self) -> None:
        _require_discount(self.gamma, self.horizon)
        if self.failure not in ("endless", "ends"):
            raise ValueError(f"sparse values: expected failure 'endless' or 'ends', got {self.failure!r}")
        if self.failure == "endless" and self.gamma == 1 and self.horizon is None:
            raise ValueError(
                "sparse values: expected gamma below 1 for an endless failure, got 1; choose failure='ends'"
            )

    @property
    def channel_names(self) -> tuple[str, ...]:
        """One channel."""
        return ("total",)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `settings_from_dict` inverts it."""
        return {"method": "sparse", **asdict(self), "channels": list(self.channel_names)}


ValueSettings = DenseValueSettings | SparseValueSettings


def settings_from_dict(data: dict[str, Any]) -> ValueSettings:
    """Inverse of the settings' `to_dict`.

    Raises:
        ValueError: the method is unknown, or a key is missing or unknown.
    """
    methods: dict[str, type[DenseValueSettings] | type[SparseValueSettings]]
    methods = {"dense": DenseValueSettings, "sparse": SparseValueSettings}
    if data.get("method") not in methods:
        raise ValueError(f"value settings: expected a method among {list(methods)}, got {data.get('method')!r}")
    chosen = methods[data["method"]]
    values = {key: item for key, item in data.items() if key not in ("method", "channels", "weights")}
    try:
        if "arms" in values:
            lists = ("state", "action")
            arms = [{**arm, **{key: tuple(arm[key]) for key in lists}} for arm in values["arms"]]
            values["arms"] = tuple(ArmChannels(**arm) for arm in arms)
            values["component_weights"] = tuple(values.get("component_weights", ()))
        return chosen(**values)
    except (KeyError, TypeError) as error:
        known = [item.name for item in fields(chosen)]
        raise ValueError(f"value settings: expected the keys {known}, got {sorted(values)} ({error})") from error


def return_to_go(
    rewards: Float[np.ndarray, "t c"], gamma: float, horizon: int | None = None
) -> Float[np.ndarray, "t c"]:
    """v_t = sum over i = 0 … H of gamma^i r_{t+i}, per channel; nothing follows the last row.

    Args:
        rewards: per step.
        gamma: discount per step.
        horizon: H; `None` sums to the end.

    Source: WAV 4.1 of the specification.
    """
    values = np.asarray(rewards, dtype=np.float64).copy()
    length = len(values)
    reach = 1
    while reach < length:  # sums over `reach` steps become sums over twice as many
        values[:-reach] += gamma**reach * values[reach:]
        reach *= 2
    if horizon is not None and horizon + 1 < length:
        values[: length - horizon - 1] -= gamma ** (horizon + 1) * values[horizon + 1 :].copy()
    return values


def dense_rewards(
    *,
    state: Float[np.ndarray, "t s"],
    action: Float[np.ndarray, "t a"],
    frames: dict[str, UInt8[np.ndarray, "t h w 3"]],
    settings: DenseValueSettings,
) -> Float[np.ndarray, "t n"]:
    """Reward components of every step of a successful demonstration, in the settings' order, before weighting.

    Args:
        state: of the whole episode; its last row is the target.
        action: of the whole episode.
        frames: of every camera in `settings.cameras`; the last of each is the target.
        settings: roles and constants.

    Raises:
        ValueError: a camera or channel of the settings is not there.

    Source: WAV 4.1 of the specification.
    """
    missing = [camera for camera in settings.cameras if camera not in frames]
    channels = [
        max((*arm.state, 0)) >= state.shape[1] or max((*arm.action, 0)) >= action.shape[1] for arm in settings.arms
    ]
    if missing or any(channels):
        raise ValueError(
            f"dense values: expected cameras {list(settings.cameras)} and the channels of {settings.arms}, got cameras "
            f"{list(frames)}, {state.shape[1]} state and {action.shape[1]} action channels; correct the settings' roles"
        )
    likeness = {}
    for camera in settings.cameras:
        error, similarity = likeness_to_target(
            frames[camera],
            frames[camera][-1],
            image_size=settings.image_size,
            pixel_range=settings.pixel_range,
            window=settings.ssim_window,
            sigma=settings.ssim_sigma,
        )
        likeness[camera] = np.exp(-settings.mse_rate * error), np.exp(similarity - 1)
    states = [state[:, arm.state].astype(np.float64) for arm in settings.arms]
    actions = [action[:, arm.action].astype(np.float64) for arm in settings.arms]
    columns = [likeness[arm.wrist_camera][0] for arm in settings.arms]
    columns += [likeness[arm.wrist_camera][1] for arm in settings.arms]
    columns += likeness[settings.third_person]
    columns += [np.exp(-np.linalg.norm(rows - rows[-1], axis=1)) for rows in states]
    for vectors in (states, actions):
        for order in (1, 2):
            columns += [np.abs(_difference(rows, order)).sum(axis=1) for rows in vectors]
    return np.stack([columns[index] for index in settings.positions], axis=1)


def dense_values(
    *,
    state: Float[np.ndarray, "t s"],
    action: Float[np.ndarray, "t a"],
    frames: dict[str, UInt8[np.ndarray, "t h w 3"]],
    settings: DenseValueSettings,
) -> Float[np.ndarray, "t r"]:
    """Value targets of every step: components in the settings' order, then the return of their weighted sum.

    Raises:
        ValueError: as `dense_rewards`.
    """
    rewards = dense_rewards(state=state, action=action, frames=frames, settings=settings)
    total = rewards @ np.array(settings.weights)
    returns = return_to_go(np.column_stack([rewards, total]), settings.gamma, settings.horizon)
    if settings.components == "rewards":
        returns[:, :-1] = rewards
    return returns.astype(np.float32)


def sparse_values(success: Bool[np.ndarray, "t"], settings: SparseValueSettings) -> Float[np.ndarray, "t 1"]:
    """Value targets of every step, one channel.

    Args:
        success: whether the task was solved after each step's action.
        settings: discount, and what follows a failure.
    """
    solved = np.logical_or.accumulate(success)
    rewards = np.where(solved, 0.0, -1.0)[:, None]
    if not solved[-1] and settings.failure == "endless":
        steps = np.inf if settings.horizon is None else settings.horizon + 1
        forever = -steps if settings.gamma == 1 else -(1 - settings.gamma**steps) / (1 - settings.gamma)
        return np.full((len(success), 1), forever, dtype=np.float32)
    return return_to_go(rewards, settings.gamma, settings.horizon).astype(np.float32)


def _difference(rows: np.ndarray, order: int) -> np.ndarray:
    """Finite difference along time, zero in the first `order` rows."""
    return np.concatenate([np.zeros_like(rows[:order]), np.diff(rows, n=order, axis=0)])


def _require_discount(gamma: float, horizon: int | None) -> None:
    if not 0 <= gamma <= 1 or (horizon is not None and horizon < 0):
        raise ValueError(f"values: expected gamma in [0, 1] and horizon of 0 or more, got {gamma} and {horizon}")
