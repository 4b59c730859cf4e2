"""Named, versioned evaluation protocols: what is fixed so that two success rates can be compared.

A result carries `Protocol.title`; a protocol that was changed says so in its title, so no table can mix it up with the
named one.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from wamkit.envs import match_tasks, suite_tasks
from wamkit.envs.base import EpisodeRequest
from wamkit.envs.render import RENDERING_NAMES
from wamkit.spec import RobotSpec

LimitUnit = Literal["steps", "calls"]
UNCOUNTED = ("tasks", "episodes", "num_layouts", "summary")
"""Fields that do not change what a trial is: the number of episodes and the choice of tasks stand in the tables."""
EPISODE_SEED_STRIDE = 100_000
"""Distance between the episode seeds of two protocol seeds; larger than any number of layouts."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What an evaluation fixes.

    Args:
        name: name and version, for instance `metaworld/v1`.
        suite: the simulator suite.
        tasks: task ids it covers; empty means every task of the suite.
        layout_seed: seed of the family of initial states; another one than the recordings'.
        num_layouts: initial states that the family has, when their number is limited.
        episodes: episodes per task and seed unless told otherwise; episode k starts from layout k.
        seeds: seeds of the policy's own draws; each is a full pass over the layouts.
        max_steps: control steps after which an episode of any task counts as a failure.
        task_limits: tighter limits of some tasks, as pairs of a shell-style pattern and a limit; the first pattern that
            a task fits counts.
        limit_unit: what `task_limits` count: control steps, or policy calls, whatever number of steps each runs.
        settle_steps: steps without motion that the simulator makes when it is reset, before the first observation.
        execution_horizon: actions run before the policy is asked again; `None` is the policy's own.
        cameras: cameras the policy may see, in view order; their size is the policy's own.
        rendering: rendering setting of the simulator; the look of an image is part of the protocol.
        summary: one line for people.
    """

    name: str
    suite: str
    tasks: tuple[str, ...] = ()
    layout_seed: int
    num_layouts: int | None = None
    episodes: int
    seeds: tuple[int, ...] = (0,)
    max_steps: int
    task_limits: tuple[tuple[str, int], ...] = ()
    limit_unit: LimitUnit = "steps"
    settle_steps: int = 0
    execution_horizon: int | None = None
    cameras: tuple[str, ...]
    rendering: str
    summary: str = ""

    def __post_init__(self) -> None:
        for key, numbers in (("layout_seed", [self.layout_seed]), ("seeds", self.seeds)):
            if any(number < 0 for number in numbers):
                raise ValueError(f"protocol {self.name!r}: expected {key} of 0 or more, got {getattr(self, key)}")
        for key in ("episodes", "max_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"protocol {self.name!r}: expected {key} >= 1, got {getattr(self, key)}")
        if self.execution_horizon is not None and self.execution_horizon < 1:
            raise ValueError(f"protocol {self.name!r}: expected execution_horizon >= 1, got {self.execution_horizon}")
        if self.limit_unit not in get_args(LimitUnit):
            raise ValueError(f"protocol {self.name!r}: expected limit_unit steps or calls, got {self.limit_unit!r}")
        if self.settle_steps < 0:
            raise ValueError(f"protocol {self.name!r}: expected settle_steps of 0 or more, got {self.settle_steps}")
        wrong = [f"{pattern}: {limit}" for pattern, limit in self.task_limits if limit < 1]
        if wrong:
            raise ValueError(f"protocol {self.name!r}: expected task_limits of 1 or more, got {', '.join(wrong)}")
        if self.limit_unit == "calls" and not self.task_limits:
            raise ValueError(
                f"protocol {self.name!r}: expected task_limits to count policy calls (limit_unit), got none; "
                "max_steps always counts control steps"
            )
        # A seed given twice would count the same episodes twice and narrow the interval for nothing.
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"protocol {self.name!r}: expected one or more distinct seeds, got {list(self.seeds)}")

    @property
    def title(self) -> str:
        """The name, followed by everything that was changed: `metaworld/v1 (max_steps=300)`."""
        changes = self._changes()
        return f"{self.name} ({changes})" if changes else self.name

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Every task it covers."""
        return self.tasks or tuple(suite_tasks(self.suite))

    @property
    def rules(self) -> str:
        """When an episode ends and how it begins, in words."""
        return describe_rules(dataclasses.asdict(self))

    def settings(self, *, tasks: Sequence[str] = (), episodes: int | None = None) -> dict[str, Any]:
        """Every field as an evaluation uses it, for its results.

        Args:
            tasks: those that were asked for, see `choose`; empty means all.
            episodes: episodes per task and seed that were asked for; by default the protocol's number.
        """
        changes = self._changes()
        used = dataclasses.replace(
            self,
            tasks=self.choose(tasks) if tasks else self.tasks,
            episodes=self.episodes if episodes is None else episodes,
            # The words tell of the named protocol's numbers.
            summary=f"{self.name} with {changes}" if changes else self.summary,
        )
        return dataclasses.asdict(used)

    def _changes(self) -> str:
        """What sets it apart from the protocol of its name; empty when nothing does."""
        named = PROTOCOLS.get(self.name)
        fixed = [item.name for item in dataclasses.fields(self) if item.name not in UNCOUNTED]
        changed = [key for key in fixed if named is not None and getattr(self, key) != getattr(named, key)]
        return ", ".join(f"{key}={_plain(getattr(self, key))}" for key in changed)

    def step_limit(self, task: str) -> int:
        """Control steps after which an episode of a task ends unsolved."""
        limit = self._task_limit(task)
        return self.max_steps if limit is None or self.limit_unit == "calls" else min(limit, self.max_steps)

    def call_limit(self, task: str) -> int | None:
        """Policy calls after whose actions an episode of a task ends unsolved; `None` when calls are not counted."""
        return self._task_limit(task) if self.limit_unit == "calls" else None

    def _task_limit(self, task: str) -> int | None:
        return next((limit for pattern, limit in self.task_limits if fnmatch.fnmatchcase(task, pattern)), None)

    def choose(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Some of the protocol's tasks, each once.

        Args:
            tasks: ids, or shell-style patterns such as `libero_object/*`; empty means all.

        Raises:
            ValueError: an unknown task, or a pattern that no task fits.
        """
        known = self.task_ids
        chosen, unknown = match_tasks(tasks, known)
        if unknown:
            close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
            guess = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(
                f"protocol {self.name!r} has no task {', '.join(unknown)}{guess}; it covers {', '.join(known)}"
            )
        return chosen or known

    def requests(self, *, tasks: Sequence[str] = (), episodes: int | None = None) -> list[EpisodeRequest]:
        """The episodes to run, task by task, seed by seed, layout by layout.

        Args:
            tasks: some of the protocol's tasks, see `choose`; empty means all.
            episodes: episodes per task and seed; by default the protocol's number.

        Raises:
            ValueError: an unknown task, or fewer than one episode.
        """
        chosen = self.choose(tasks)
        count = self.episodes if episodes is None else episodes
        if not 1 <= count < EPISODE_SEED_STRIDE:
            raise ValueError(f"expected between 1 and {EPISODE_SEED_STRIDE - 1} episodes per task, got {count}")
        if self.num_layouts is not None and count > self.num_layouts:
            raise ValueError(
                f"protocol {self.title!r} has {self.num_layouts} initial states for each task: expected at most as "
                f"many episodes, got {count}; use more seeds, or another layout_seed, which draws initial states"
            )
        return [
            EpisodeRequest(
                task=task, layout=layout, layout_seed=self.layout_seed, seed=seed * EPISODE_SEED_STRIDE + layout
            )
            for task in chosen
            for seed in self.seeds
            for layout in range(count)
        ]

    def require_robot(self, robot: RobotSpec) -> None:
        """Refuse a policy or an environment that does not see what the protocol shows.

        A policy may see fewer cameras than the protocol offers, never others.

        Raises:
            ValueError: naming the protocol's setting, the robot's, and what to do.
        """
        foreign = [camera for camera in robot.camera_names if camera not in self.cameras]
        if foreign:
            raise ValueError(
                f"protocol {self.title!r} shows the cameras {', '.join(self.cameras)}, but the policy also wants "
                f"{', '.join(foreign)}; train it with the protocol's cameras, or change the protocol's"
            )
        if robot.rendering != self.rendering:
            options = {name: f" (--rendering {setting})" for setting, name in RENDERING_NAMES.items()}
            raise ValueError(
                f"protocol {self.title!r} renders with {self.rendering!r}, but the policy was trained on "
                f"{robot.rendering!r}; change the protocol's rendering{options.get(robot.rendering, '')}, or train a "
                f"policy on recordings with the protocol's{options.get(self.rendering, '')}"
            )


def _libero(*, name: str, max_steps: int, limit_unit: LimitUnit, summary: str) -> Protocol:
    return Protocol(
        name=name,
        suite="libero",
        layout_seed=0,  # the stored initial states
        num_layouts=50,
        episodes=50,
        max_steps=max_steps,
        task_limits=(
            ("libero_spatial/*", 220),
            ("libero_object/*", 280),
            ("libero_goal/*", 300),
            ("libero_10/*", 520),
            ("libero_90/*", 400),
        ),
        limit_unit=limit_unit,
        settle_steps=10,
        execution_horizon=8,
        cameras=("agentview", "robot0_eye_in_hand"),
        rendering="mujoco-stock",
        summary=summary,
    )


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="metaworld/v1",
            suite="metaworld",
            # Recordings start from layout seed 42, so no evaluated layout was seen in training.
            layout_seed=1042,
            episodes=50,
            max_steps=500,
            cameras=("corner2", "gripperPOV"),
            rendering="mujoco-low-cost",
            summary="Meta-World 3, layouts of benchmark seed 1042, success at any of 500 steps",
        ),
        Protocol(
            name="aloha/v1",
            suite="aloha",
            # Recordings start from layout seed 42, and families of layouts share none.
            layout_seed=1042,
            episodes=50,
            max_steps=400,
            cameras=("top", "left_wrist", "right_wrist"),
            rendering="mujoco-low-cost",
            summary="gym-aloha, layouts of seed 1042, success (reward 4) at any of 400 steps",
        ),
        _libero(
            name="libero/standard",
            max_steps=520,
            limit_unit="steps",
            summary="LIBERO, stored initial states, limits in control steps: the rules of OpenVLA-OFT",
        ),
        _libero(
            name="libero/wav-reference",
            max_steps=1000,
            limit_unit="calls",
            summary="LIBERO as the public WAV code evaluates: limits in policy calls of 8 actions, up to 1000 steps",
        ),
    )
}


def get_protocol(name: str, **changes: Any) -> Protocol:
    """A protocol by name, with changes that its title will show.

    Args:
        name: a key of `PROTOCOLS`.
        changes: fields to replace; `None` leaves a field as it is.

    Raises:
        ValueError: unknown name, listing the known ones.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; choose one of {', '.join(sorted(PROTOCOLS))}")
    named = PROTOCOLS[name]
    changed = {key: value for key, value in changes.items() if value is not None}
    if changed.get("layout_seed", named.layout_seed) != named.layout_seed:
        changed.setdefault("num_layouts", None)  # of the named family
    return dataclasses.replace(named, **changed)


def same_rules(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results' protocol settings fix the same; fields that an older one lacks have their defaults."""
    return rules_of(one) == rules_of(other)


def rules_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a result's protocol settings fix about a trial, as JSON holds it, with the defaults of what is not told."""
    defaults = {
        item.name: item.default for item in dataclasses.fields(Protocol) if item.default is not dataclasses.MISSING
    }
    rules: dict[str, Any] = json.loads(json.dumps({**defaults, **settings}))
    return {key: value for key, value in rules.items() if key not in UNCOUNTED}


def describe_rules(settings: Mapping[str, Any]) -> str:
    """When an episode of a result ends and how it begins, in words; empty when its settings do not say."""
    rules = rules_of(settings)
    if "max_steps" not in rules:
        return ""
    limits = sorted({limit for _, limit in rules["task_limits"]})
    unit = "policy calls" if rules["limit_unit"] == "calls" else "control steps"
    parts = [f"{limits[0]} to {limits[-1]} {unit} by task"] if len(limits) > 1 else []
    parts += [f"{limits[0]} {unit}"] if len(limits) == 1 else []
    parts += [f"at most {rules['max_steps']} control steps"]
    parts += [f"{rules['settle_steps']} settle steps"] if rules["settle_steps"] else []
    return ", ".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(":".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return str(value)
