"""What robots send, whatever their dialect calls it, held to what the policy needs.

Every dialect makes a map of what came (a msgpack map, a JSON object, the parts of a form) and gives it to one reader,
which knows the field's names for cameras, state and sentence and refuses what does not fit before it reaches the
policy: names of cameras, their number and size, pixel types and ranges, the state's width, limits of every number.

Source: WAV 6.5 to 6.7 and the wire formats of openpi, vla-eval, OpenVLA and LingBot-VA.
Differs: unknown keys, NaN and values out of range are refused with what to send instead; the public servers pass them
    on to the network.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, UInt8
from wamkit_client.errors import BadRequest

from wamkit.planning.config import WAV, PlannerConfig, with_explore_config
from wamkit.spec import PolicySpec

RESET_MARK: Final = "<reset>"
MAX_EXECUTED: Final = 100
MAX_PROMPT: Final = 4096
MAX_DECODER_STEPS: Final = 100
MAX_SEARCH: Final = {"iterations": 20, "num_videos": 64, "num_values": 32}
MAX_SEARCH_WORK: Final = 2**14
"""Rounds times videos times values times steps of a search that a request asks for: 3.5 times WAV's own."""

_STATE_KEYS: Final = ("state", "states", "observation/state", "observation.state", "proprio")
_TASK_KEYS: Final = ("prompt", "task_description", "instruction", "task")
_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "agentview": ("image", "full_image", "primary_image"),
    "robot0_eye_in_hand": ("wrist_image", "wrist", "left_wrist_image"),
}
"""What published clients call LIBERO's cameras."""
_OTHERS: Final = frozenset(
    {
        "obs",
        "cameras",
        "images",
        "reset",
        "seed",
        "execution_step",
        "executed",
        "state_zeropadding",
        "num_inference_steps",
        "ndim_action",
        "explore_config",
        "value",
        "imagine",
        "batching",
        "deadline_ms",
        "compute_kv_cache",
    }
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one call decodes and plans; calls with equal settings may share a batch.

    Args:
        num_steps: Euler steps of the decoder.
        planner: how noise is searched, or `None`.
    """

    num_steps: int
    planner: PlannerConfig | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request of a robot.

    Args:
        video: newest frame of every camera in the policy's order, or `None` when only an episode begins.
        state: physical units.
        task: sentence, or `None` for the one told before.
        begins: whether an episode begins with it.
        seed: what the episode's draws follow from; the server chooses when `None`.
        executed: actions run since the previous answered request; the policy's execution horizon when not told.
        rows: actions to return, or `None` for the whole chunk. With 0 the last ones are returned again.
        settings: of this call.
        value: whether values are wanted; the server's own setting when `None`.
        imagine: whether imagined frames and the planner's scores are wanted.
        exact: whether actions must be those of a call of its own, bit for bit; the server's setting when `None`.
        deadline_s: seconds after arrival until which beginning to compute makes sense.
        feeds_back: whether the frames are only to be remembered.
    """

    video: UInt8[np.ndarray, "v h w 3"] | None
    state: Float32[np.ndarray, "s"] | None
    task: str | None
    begins: bool
    seed: int | None
    executed: int
    rows: int | None
    settings: Settings
    value: bool | None
    imagine: bool
    exact: bool | None
    deadline_s: float | None
    feeds_back: bool


@dataclass(frozen=True, kw_only=True)
class RequestReader:
    """Makes a `Request` of a map.

    Args:
        spec: what the policy needs.
        settings: of calls that ask for no other.
        camera_keys: further names: key of a request -> camera of the policy.
        state_keys: keys whose numbers, one after the other, are the state; by default the field's usual names.
        ignored: keys that are accepted and not read.
        max_search_work: of a request that asks for another search than the server's own: rounds times videos times
            values times denoising steps. While it computes all other robots wait.
    """

    spec: PolicySpec
    settings: Settings
    camera_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    state_keys: tuple[str, ...] = ()
    ignored: frozenset[str] = frozenset()
    max_search_work: int = MAX_SEARCH_WORK

    def __post_init__(self) -> None:
        names = self.spec.robot.camera_names
        wrong = {key: camera for key, camera in self.camera_keys.items() if camera not in names}
        if wrong:
            raise ValueError(f"expected keys for the policy's cameras {list(names)}, got {wrong}")

    @functools.cached_property
    def cameras(self) -> dict[str, str]:
        """Every name under which a camera's image may come."""
        known: dict[str, str] = {}
        names = self.spec.robot.camera_names
        for camera in names:
            aliases = _ALIASES.get(camera, ())
            if len(names) == 1:
                aliases = (*aliases, *(name for name in _ALIASES["agentview"] if name not in aliases))
            for name in (camera, *aliases):
                for prefix in ("", "observation/", "observation/images/", "observation.images."):
                    known.setdefault(prefix + name, camera)
        return {**known, **self.camera_keys}

    @property
    def wanted(self) -> str:
        """What to send, for messages and for the metadata."""
        robot = self.spec.robot
        sizes = ", ".join(f"{camera.name} {camera.height}x{camera.width}" for camera in robot.cameras)
        aliases = "".join(f"; {key!r} is camera {camera!r}" for key, camera in self.camera_keys.items())
        return (
            f"'images' with uint8 RGB arrays (height, width, 3) by camera ({sizes}) or 'obs' with all of them stacked "
            f"in this order{aliases}, 'state' with {len(robot.state)} numbers "
            f"({', '.join(channel.name for channel in robot.state)}), and 'prompt'"
        )

    @property
    def wanted_before(self) -> str:
        """What to send before a request for actions, for the metadata; empty where nothing is remembered between."""
        stride, reach = self.spec.context_stride, self.spec.context_reach
        if stride is None or not reach:
            return ""
        steps = ", ".join(str(steps) for steps in range(reach, 0, -stride))
        return (
            f"; and before it what was seen {steps} control step{'s' * (steps != '1')} earlier, each with "
            "'compute_kv_cache' true and 'executed'"
        )

    def read(self, message: Any) -> Request:
        """A request.

        Raises:
            BadRequest: saying what was expected, what came and what to send instead.
        """
        if not isinstance(message, Mapping):
            raise BadRequest(f"expected a map of {self.wanted}, got {_kind(message)}")
        if not all(isinstance(key, str) for key in message):
            raise BadRequest("expected text as the keys of a request, got another kind; pack text as msgpack's str")
        self._refuse_unknown(message)
        task, is_marked = _prompt(message)
        begins = _flag(message, "reset", False) or is_marked
        feeds_back = _flag(message, "compute_kv_cache", False)
        video = self._video(message)
        if video is None and not begins:
            raise BadRequest(f"expected {self.wanted}; no image of any camera came")
        executed, rows = self._steps(message)
        return Request(
            video=video,
            state=None if video is None else self._state(message, is_needed=not feeds_back),
            task=task,
            begins=begins,
            seed=_whole(message, "seed", 0, 2**63 - 1),
            executed=executed,
            rows=rows,
            settings=self._settings(message),
            value=_flag(message, "value", None),
            imagine=bool(_flag(message, "imagine", False)),
            exact=_exact(message),
            deadline_s=_deadline(message),
            feeds_back=bool(feeds_back),
        )

    def _refuse_unknown(self, message: Mapping[str, Any]) -> None:
        known = {*self.cameras, *self.state_keys, *_STATE_KEYS, *_TASK_KEYS, *_OTHERS, *self.ignored}
        unknown = [key for key in message if key not in known]
        if unknown:
            shown = ", ".join(repr(key[:40]) for key in unknown[:5]) + " …" * (len(unknown) > 5)
            raise BadRequest(
                f"expected {self.wanted}; got the unknown keys {shown}. Leave them out, or start the server with "
                "--camera KEY=CAMERA or --state-key for images and states under other names, or --ignore-key"
            )

    def _video(self, message: Mapping[str, Any]) -> UInt8[np.ndarray, "v h w 3"] | None:
        names = self.spec.robot.camera_names
        named = [(key, value) for key, value in message.items() if key in self.cameras]
        if message.get("obs") is not None:
            if named or message.get("images") is not None:
                raise BadRequest("expected either 'obs' or images by camera, got both; send one of them")
            told = message.get("cameras")
            if told is not None and not _same_names(_sequence(told, "cameras"), names):
                raise BadRequest(f"expected 'obs' with cameras in the order {list(names)}, got {_shown(told)}")
            return self._stacked(message["obs"])
        images = message.get("images")
        if images is not None:
            if not isinstance(images, Mapping):
                raise BadRequest(f"expected 'images' as a map from camera to array, got {_kind(images)}")
            named += [(f"{key}", value) for key, value in images.items()]
        if not named:
            return None
        found: dict[str, Any] = {}
        for key, image in named:
            camera = self.cameras.get(key)
            if camera is None or camera in found:
                what = "an unknown camera" if camera is None else f"two images of camera {camera!r}"
                raise BadRequest(f"expected one image of each of the cameras {list(names)}, got {what}: {key[:40]!r}")
            found[camera] = self._image(image, camera)
        missing = [name for name in names if name not in found]
        if missing:
            raise BadRequest(
                f"expected one image of each of the cameras {list(names)}, got {list(found)}; send {missing} too"
            )
        return np.stack([found[name] for name in names])

    def _sizes(self, camera: int) -> list[tuple[int, int]]:
        own = self.spec.robot.cameras[camera]
        fitted = self.spec.image_size
        return [(own.height, own.width)] + ([fitted] if fitted not in (None, (own.height, own.width)) else [])

    def _image(self, image: Any, camera: str) -> UInt8[np.ndarray, "h w 3"]:
        sizes = self._sizes(self.spec.robot.camera_names.index(camera))
        fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape in [(*s, 3) for s in sizes]
        if not fits:
            wanted = " or ".join(f"({height}, {width}, 3)" for height, width in sizes)
            is_pixels = isinstance(image, np.ndarray) and image.dtype == np.uint8
            advice = "resize it on the robot as in training" if is_pixels else "send pixels of 0 to 255 as uint8"
            raise BadRequest(
                f"expected camera {camera!r} as a uint8 RGB array of shape {wanted}, got {_kind(image)}; {advice}"
            )
        return image

    def _stacked(self, obs: Any) -> UInt8[np.ndarray, "v h w 3"]:
        """`obs` of WAV: uint8 `[v, h, w, 3]`, or float `[v, 3, h, w]` in [-1, 1]."""
        views, sizes = len(self.spec.robot.cameras), self._sizes(0)
        if isinstance(obs, np.ndarray):
            if obs.dtype == np.uint8 and obs.shape in [(views, *size, 3) for size in sizes]:
                return obs
            if obs.dtype.kind == "f" and obs.shape in [(views, 3, *size) for size in sizes]:
                # NaN fails this comparison too
                if not (np.abs(obs.astype(np.float32)) <= 1).all():
                    raise BadRequest("expected a float 'obs' of finite numbers in [-1, 1], got others; send uint8")
                return np.rint((obs.transpose(0, 2, 3, 1).astype(np.float32) + 1) * 127.5).astype(np.uint8)
        height, width = sizes[0]
        names = ", ".join(self.spec.robot.camera_names)
        raise BadRequest(
            f"expected 'obs' as uint8 of shape ({views}, {height}, {width}, 3), cameras in the order {names}, or float "
            f"of shape ({views}, 3, {height}, {width}) in [-1, 1], got {_kind(obs)}"
        )

    def _state(self, message: Mapping[str, Any], *, is_needed: bool) -> Float32[np.ndarray, "s"] | None:
        robot = self.spec.robot
        keys = self.state_keys or tuple(key for key in _STATE_KEYS if key in message)
        if not self.state_keys and len(keys) > 1:
            raise BadRequest(f"expected one state, got {list(keys)}; send one of them")
        missing = [key for key in keys if key not in message]
        if not keys or missing:
            if not is_needed:
                return None
            names = ", ".join(channel.name for channel in robot.state)
            raise BadRequest(
                f"expected {missing or ['state']} with {len(robot.state)} numbers ({names}), got none; send it"
            )
        state = np.concatenate([_numbers(message[key], key) for key in keys])
        if len(state) != len(robot.state):
            names = ", ".join(channel.name for channel in robot.state)
            raise BadRequest(f"expected a state of {len(robot.state)} numbers ({names}), got {len(state)}")
        if not np.isfinite(state).all():
            raise BadRequest("expected a state of finite numbers, got NaN or infinity; check the robot's sensors")
        _padding(message)
        return state

    def _steps(self, message: Mapping[str, Any]) -> tuple[int, int | None]:
        """Actions run since the previous request, and rows to return."""
        executed = _whole(message, "executed", 0, MAX_EXECUTED)
        limit = min(MAX_EXECUTED, self.spec.action_horizon)
        rows = _whole(message, "execution_step", 0, MAX_EXECUTED)
        if rows is None and executed is None and "obs" in message:
            rows = 1  # what WAV's clients mean by saying nothing
        if rows is not None and rows > limit:
            raise BadRequest(
                f"expected execution_step of 0 to {limit}, the actions that this policy predicts, got {rows}"
            )
        if executed is None:
            executed = self.spec.execution_horizon if rows is None else rows
        return executed, rows

    def _settings(self, message: Mapping[str, Any]) -> Settings:
        settings = self.settings
        num_steps = _whole(message, "num_inference_steps", 1, MAX_DECODER_STEPS)
        if num_steps is not None:
            settings = dataclasses.replace(settings, num_steps=num_steps)
        width, wanted = len(self.spec.robot.action), _whole(message, "ndim_action", 1, 4096)
        if wanted is not None and wanted != width:
            raise BadRequest(f"expected ndim_action {width}, the width of this policy's actions, got {wanted}")
        explore = message.get("explore_config")
        if isinstance(explore, np.ndarray) or explore:
            settings = dataclasses.replace(settings, planner=_planner(explore, settings.planner))
        most = max(self.max_search_work, _work(self.settings))
        if _work(settings) > most:
            raise BadRequest(
                f"expected a search of at most {most} rounds times videos times values times steps, got "
                f"{_work(settings)}; lower explore_config or num_inference_steps, or start the server with another "
                "--max-search-work"
            )
        return settings


def _work(settings: Settings) -> int:
    planner = settings.planner
    if planner is None:
        return 0
    return planner.iterations * planner.num_videos * planner.num_values * (planner.value_steps or settings.num_steps)


def _is_small(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not abs(value) > 2**31)


def _planner(explore: Any, planner: PlannerConfig | None) -> PlannerConfig:
    if not isinstance(explore, Mapping):
        raise BadRequest(f"expected 'explore_config' as a map of WAV's planner settings, got {_kind(explore)}")
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in explore.items()}
    wrong = [f"{key}"[:40] for key, value in plain.items() if not isinstance(value, str) and not _is_small(value)]
    if wrong:
        raise BadRequest(f"expected explore_config with a number for each setting, got others for {wrong[:8]}")
    try:
        changed = with_explore_config(planner or WAV, plain)
    except ValueError as error:
        raise BadRequest(f"explore_config: {error}") from error
    for name, most in MAX_SEARCH.items():
        if getattr(changed, name) > most:
            raise BadRequest(f"explore_config: expected {name} of at most {most}, got {getattr(changed, name)}")
    return changed


def _prompt(message: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The sentence, and whether it asks for a new episode."""
    keys = [key for key in _TASK_KEYS if message.get(key) is not None]
    if not keys:
        return None, False
    if len(keys) > 1:
        raise BadRequest(f"expected one sentence, got {keys}; send one of them")
    prompt = message[keys[0]]
    if isinstance(prompt, np.ndarray) or not isinstance(prompt, str):
        raise BadRequest(f"expected {keys[0]!r} as text, got {_kind(prompt)}")
    if len(prompt) > MAX_PROMPT:
        raise BadRequest(f"expected {keys[0]!r} of at most {MAX_PROMPT} characters, got {len(prompt)}; shorten it")
    if RESET_MARK not in prompt:
        return prompt, False
    return prompt.replace(RESET_MARK, "").strip() or None, True  # the mark alone keeps the sentence


def _padding(message: Mapping[str, Any]) -> None:
    """`state_zeropadding` follows from the model's configuration; here it only has to make sense."""
    padding = message.get("state_zeropadding")
    if padding is None:
        return
    numbers = _numbers(padding, "state_zeropadding")
    if len(numbers) != 2 or not all(0 <= number <= 4096 and number == int(number) for number in numbers):
        raise BadRequest(
            f"expected state_zeropadding of two whole numbers of 0 or more, got {_shown(padding)}; the server knows "
            "the padding, so leave it out"
        )


def _numbers(value: Any, key: str) -> Float32[np.ndarray, "s"]:
    try:
        if isinstance(value, (list, tuple)) and all(type(item) in (int, float) for item in value):
            value = np.array(value, np.float64)
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            value = np.array([value], np.float64)
    except OverflowError as error:  # JSON has whole numbers of any length
        raise BadRequest(f"expected {key!r} of finite numbers, got one that no computer's number holds") from error
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iuf":
        raise BadRequest(f"expected {key!r} as a vector of numbers, got {_kind(value)}")
    with np.errstate(over="ignore"):  # what is too large becomes infinity and is refused as such
        return value.astype(np.float32)


def _whole(message: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    value = message.get(key)
    if value is None:
        return None
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise BadRequest(f"expected {key} as a whole number of {least} to {most}, got {_shown(value)}")
    return int(value)


def _flag(message: Mapping[str, Any], key: str, default: bool | None) -> bool | None:
    value = message.get(key)
    if value is None:
        return default
    if not isinstance(value, (bool, np.bool_)):
        raise BadRequest(f"expected {key} to be true or false, got {_shown(value)}")
    return bool(value)


def _exact(message: Mapping[str, Any]) -> bool | None:
    batching = message.get("batching")
    if batching is None:
        return None
    if not isinstance(batching, str) or batching not in ("exact", "free"):
        raise BadRequest(f"expected batching to be 'exact' or 'free', got {_shown(batching)}")
    return bool(batching == "exact")


def _deadline(message: Mapping[str, Any]) -> float | None:
    value = message.get("deadline_ms")
    if value is None:
        return None
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 3_600_000:
        raise BadRequest(
            f"expected deadline_ms as milliseconds of more than 0 and at most an hour, got {_shown(value)}"
        )
    return float(value) / 1000


def _sequence(value: Any, key: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise BadRequest(f"expected {key!r} as a list, got {_kind(value)}")
    return value


def _same_names(told: Sequence[Any], names: Sequence[str]) -> bool:
    return all(isinstance(name, str) for name in told) and list(told) == list(names)


def _kind(value: Any) -> str:
    """What came, without its contents."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, Mapping):
        return f"a map with the keys {_shown(list(value))}"
    if isinstance(value, (str, bytes, list, tuple)):
        return f"{type(value).__name__} of length {len(value)}"
    return "nothing" if value is None else type(value).__name__


def _shown(value: Any) -> str:
    """A value as it came, cut short; what lies in lists within lists or in maps is only named."""
    if isinstance(value, (list, tuple)):
        items = [_kind(item) if isinstance(item, (list, tuple, Mapping)) else _shown(item) for item in value[:8]]
        return "[" + ", ".join(items) + (" …" * (len(value) > 8)) + "]"
    if isinstance(value, (np.ndarray, Mapping)):
        return _kind(value)
    text = repr(value[:60]) if isinstance(value, (str, bytes)) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
