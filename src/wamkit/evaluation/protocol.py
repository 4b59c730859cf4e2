"""Named, versioned evaluation protocols: what is fixed so that two success rates can be compared.

A result carries `Protocol.title`; a protocol that was changed says so in its title, so no table can mix it up with the
named one.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wamkit.envs import suite_tasks
from wamkit.envs.base import EpisodeRequest
from wamkit.spec import RobotSpec

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
        episodes: episodes per task and seed unless told otherwise; episode k starts from layout k.
        seeds: seeds of the policy's own draws; each is a full pass over the layouts.
        max_steps: control steps after which an episode counts as a failure.
        execution_horizon: actions run before the policy is asked again; `None` is the policy's own.
        cameras: cameras the policy may see, in view order; their size is the policy's own.
        rendering: rendering setting of the simulator; the look of an image is part of the protocol.
        summary: one line for people.
    """

    name: str
    suite: str
    tasks: tuple[str, ...] = ()
    layout_seed: int
    episodes: int
    seeds: tuple[int, ...] = (0,)
    max_steps: int
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
        # A seed given twice would count the same episodes twice and narrow the interval for nothing.
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"protocol {self.name!r}: expected one or more distinct seeds, got {list(self.seeds)}")

    @property
    def title(self) -> str:
        """The name, followed by everything that was changed: `metaworld/v1 (max_steps=300)`."""
        named = PROTOCOLS.get(self.name)
        # The number of episodes and the choice of tasks stand in the table itself: they do not change what a trial is.
        fixed = [item.name for item in dataclasses.fields(self) if item.name not in ("tasks", "episodes", "summary")]
        changed = [key for key in fixed if named is not None and getattr(self, key) != getattr(named, key)]
        listed = ", ".join(f"{key}={_plain(getattr(self, key))}" for key in changed)
        return f"{self.name} ({listed})" if changed else self.name

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Every task it covers."""
        return self.tasks or tuple(suite_tasks(self.suite))

    def requests(self, *, tasks: Sequence[str] = (), episodes: int | None = None) -> list[EpisodeRequest]:
        """The episodes to run, task by task, seed by seed, layout by layout.

        Args:
            tasks: some of the protocol's tasks; empty means all.
            episodes: episodes per task and seed; by default the protocol's number.

        Raises:
            ValueError: an unknown task, or fewer than one episode.
        """
        known = self.task_ids
        unknown = [task for task in tasks if task not in known]
        if unknown:
            close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
            guess = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(
                f"protocol {self.name!r} has no task {', '.join(unknown)}{guess}; it covers {', '.join(known)}"
            )
        count = self.episodes if episodes is None else episodes
        if not 1 <= count < EPISODE_SEED_STRIDE:
            raise ValueError(f"expected between 1 and {EPISODE_SEED_STRIDE - 1} episodes per task, got {count}")
        return [
            EpisodeRequest(
                task=task, layout=layout, layout_seed=self.layout_seed, seed=seed * EPISODE_SEED_STRIDE + layout
            )
            for task in tuple(dict.fromkeys(tasks)) or known
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
            raise ValueError(
                f"protocol {self.title!r} renders with {self.rendering!r}, but the policy was trained on "
                f"{robot.rendering!r}; train it on the protocol's rendering, or change the protocol's"
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
    return dataclasses.replace(PROTOCOLS[name], **{key: value for key, value in changes.items() if value is not None})


def _plain(value: Any) -> str:
    return "+".join(str(item) for item in value) if isinstance(value, tuple) else str(value)
