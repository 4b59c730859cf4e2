"""Evaluate a policy in closed loop under a named protocol.

Every finished episode is kept at once, and the same command continues an evaluation that was interrupted. The output
folder holds results.json, episodes.jsonl and the recorded episodes; `wamkit report` turns it into a page. On one
machine, with one number of torch threads, every episode takes the same course bit for bit, whatever the number of
workers and after any kill (see --batching). Exit status 1 when episodes were lost to simulator errors; the same command
tries those again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from wamkit.cli.policy import PolicyOptions
from wamkit.envs import suite_factory, suite_sentences
from wamkit.spec import SpecMismatch
from wamkit.versions import SIMULATORS, installed_versions

if TYPE_CHECKING:
    from wamkit.evaluation.closed_loop import PoolMaker
    from wamkit.evaluation.protocol import Protocol
    from wamkit.evaluation.results import PolicyIdentity, Results, TaskScore
    from wamkit.spec import RobotSpec
    from wamkit.types import ActingPolicy

Batching = Literal["exact", "free"]  # as `wamkit.batching`, which loads torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Options that say which episodes are run, and how."""

    protocol: str = "metaworld/v1"
    """Named protocol; what is changed below is added to its name wherever it is printed."""
    tasks: tuple[str, ...] = ()
    """Some of the protocol's tasks, by id or by shell-style patterns such as 'drawer-*'; by default all."""
    episodes: int | None = None
    """Episodes of each task and seed; by default the protocol's number."""
    max_steps: int | None = None
    """Change the protocol: control steps after which an episode counts as a failure."""
    execution_horizon: int | None = None
    """Change the protocol: actions run before the policy is asked again; by default the policy's own number."""
    rendering: Literal["low_cost", "stock"] | None = None
    """Change the protocol: how the simulator draws; policies need the one that they were trained on."""
    layout_seed: int | None = None
    """Change the protocol: seed of the family of initial states."""
    seeds: tuple[int, ...] = ()
    """Change the protocol: seeds of the policy's draws, each a full pass over the initial states."""
    running: Annotated[PolicyOptions, tyro.conf.arg(name="")] = field(default_factory=PolicyOptions)
    """How the policy runs."""
    memory_threshold: int = 1
    """Executed actions per shift of the policy's observation memory."""
    workers: int | None = None
    """Simulator processes; by default one per core, on fewer than eight cores up to two. 0 runs one simulator inside
    this process, for a debugger."""
    backend: Literal["processes", "ray"] = "processes"
    """Where simulators run: in processes of this machine, or on all machines of a Ray cluster (wamkit[ray])."""
    ray_address: str | None = None
    """Of the cluster, for instance auto for the one that this machine belongs to; by default Ray is started here."""
    batching: Batching = "exact"
    """exact gives every robot what it would get in a policy call of its own, so that outcomes do not depend on the
    number of workers; free always shares calls, which rounds differently on some machines."""
    groups: int = 1
    """Groups of simulators that are served in turn; 2 can pay when the policy computes on a GPU."""

    def resolved(self) -> Protocol:
        """The protocol with what is changed of it.

        Raises:
            ValueError: an unknown name, or a change out of its range.
        """
        from wamkit.envs.render import RENDERING_NAMES
        from wamkit.evaluation.protocol import get_protocol

        return get_protocol(
            self.protocol,
            max_steps=self.max_steps,
            execution_horizon=self.execution_horizon,
            rendering=None if self.rendering is None else RENDERING_NAMES[self.rendering],
            layout_seed=self.layout_seed,
            seeds=self.seeds or None,
        )


@dataclass(frozen=True, kw_only=True)
class Options(Trials):
    """Options of `wamkit evaluate`."""

    policy: Annotated[Path | None, tyro.conf.Positional] = None
    """Policy folder, or a training checkpoint; or name a --server."""
    server: str | None = None
    """Evaluate the policy that `wamkit serve` serves at this address, for instance ws://localhost:8000; it gives the
    actions that the same policy gives in this process. How it runs was said where it was started."""
    token_file: Path | None = None
    """File with the server's token; the environment variable WAMKIT_TOKEN does the same."""
    output: Path
    """Folder of the evaluation: made, or continued."""
    record_episodes: int = 4
    """Episodes of each task to record with film and trace, from the first initial state on. Their calls imagine frames
    too, which can take far longer than acting; they are timed only where there are no others."""
    fresh: bool = False
    """Remove an earlier evaluation in the output folder first."""
    json: bool = False
    """Print results.json instead of a table."""


def run(options: Options) -> int:
    """Evaluate; 1 when episodes were lost to simulator errors."""
    if options.workers is not None and options.workers < 0:
        raise ValueError(
            f"expected --workers of 1 or more, or 0 for this process, got {options.workers}; leave it out for as "
            "many as suit the cores"
        )
    make_pool = _pool_maker(options)
    from wamkit.evaluation.run_folder import require_evaluation_folder

    protocol = options.resolved()
    lowest = {"memory_threshold": 1, "groups": 1, "record_episodes": 0}
    for name, least in lowest.items():
        if getattr(options, name) < least:
            raise ValueError(f"expected {name} >= {least}, got {getattr(options, name)}")
    # Wrong tasks, planners, folders and robots are told before anything heavy is loaded.
    protocol.requests(tasks=options.tasks, episodes=options.episodes)
    options.running.check()
    require_evaluation_folder(options.output)

    with contextlib.ExitStack() as stack:
        chosen = _served(options, stack) if options.server is not None else _loaded(options)
        factory = make_factory(protocol, chosen.robot)
        protocol.require_robot(chosen.robot)

        from wamkit.evaluation.closed_loop import evaluate

        policy, identity = chosen.load()
        warn_about_tasks(policy.spec.tasks, protocol.choose(options.tasks), suite_sentences(protocol.suite))
        warn_about_versions(chosen.versions, installed_versions(SIMULATORS))
        stack.enter_context(_telling_how_to_go_on(is_fresh=options.fresh))
        results = evaluate(
            policy,
            protocol,
            factory,
            identity=identity,
            out=options.output,
            tasks=options.tasks,
            episodes=options.episodes,
            workers=options.workers,
            make_pool=make_pool,
            num_groups=options.groups,
            batching=options.batching,
            record_episodes=options.record_episodes,
            resume=not options.fresh,
        )
    if options.json:
        print(json.dumps(results.to_dict(), indent=2))
    else:
        print(_table(results, protocol.rules))
        print(f"results are in {options.output}")
    return 1 if results.overall.errors else 0


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """The policy to evaluate, before anything heavy is loaded.

    Args:
        robot: that it was trained on.
        versions: of the packages beside which it was trained, as far as known.
        load: gives it, and its name for results.
    """

    robot: RobotSpec
    versions: Mapping[str, str]
    load: Callable[[], tuple[ActingPolicy, PolicyIdentity]]


def _loaded(options: Options) -> _Chosen:
    """The policy of a folder."""
    from wamkit.checkpoint import read_policy

    folder = options.policy
    if folder is None:
        raise ValueError("expected a policy folder, or --server with the address of a server, got neither; name one")
    files = read_policy(folder)

    def load() -> tuple[ActingPolicy, PolicyIdentity]:
        settings = {"memory_threshold": options.memory_threshold}
        policy = options.running.load(folder, **settings)
        return policy, options.running.identity(folder, policy, **settings)

    return _Chosen(robot=files.spec.robot, versions=files.training.get("versions", {}), load=load)


def _served(options: Options, stack: contextlib.ExitStack) -> _Chosen:
    """The policy of a server."""
    from wamkit.cli.token import read_token
    from wamkit.evaluation.results import PolicyIdentity
    from wamkit.serving.remote import RemotePolicy

    if options.policy is not None:
        raise ValueError(f"expected a policy folder or --server, got both; leave out {options.policy} or --server")
    if options.running != PolicyOptions() or options.memory_threshold != 1:
        raise ValueError(
            "how a served policy runs (planner, steps, device, memory) is said where it is served; give these options "
            "to wamkit serve"
        )
    policy = RemotePolicy(options.server or "", token=read_token(options.token_file))
    stack.callback(policy.close)
    identity = PolicyIdentity(**policy.metadata["identity"])
    return _Chosen(robot=policy.spec.robot, versions={}, load=lambda: (policy, identity))


@contextlib.contextmanager
def _telling_how_to_go_on(*, is_fresh: bool) -> Iterator[None]:
    """Let an interrupt say what the next command does."""
    try:
        yield
    except KeyboardInterrupt:
        command = "the same command without --fresh" if is_fresh else "the same command"
        raise KeyboardInterrupt(f"finished episodes are kept; {command} goes on where it stopped") from None


def make_factory(protocol: Protocol, robot: RobotSpec) -> Any:
    """The protocol's simulator as the policy wants to see it.

    Args:
        protocol: names the suite and the rendering.
        robot: the policy's; its cameras and their size are rendered.

    Raises:
        SpecMismatch: the policy is of another robot than the suite simulates.
        ValueError: cameras of different sizes, or a rendering or settle steps that the suite does not have.
    """
    from wamkit.envs.render import RENDERING_NAMES

    _require_simulated(protocol, robot)
    sizes = sorted({(camera.height, camera.width) for camera in robot.cameras})
    if len(sizes) != 1:
        raise ValueError(f"expected cameras of one size, since the suite renders all alike, got {sizes}")
    settings = {name: setting for setting, name in RENDERING_NAMES.items()}
    if protocol.rendering not in settings:
        raise ValueError(f"suite {protocol.suite!r} renders as {', '.join(settings)}, not as {protocol.rendering!r}")
    height, width = sizes[0]
    factory = suite_factory(protocol.suite)
    own = {item.name for item in dataclasses.fields(factory)} & {"settle_steps"}
    if protocol.settle_steps and not own:
        raise ValueError(f"suite {protocol.suite!r} has no settle steps, and protocol {protocol.title!r} wants some")
    return factory(
        cameras=robot.camera_names,
        height=height,
        width=width,
        rendering=settings[protocol.rendering],
        **{name: getattr(protocol, name) for name in own},
    )


def _require_simulated(protocol: Protocol, robot: RobotSpec) -> None:
    """Refuse a policy of another robot, whose cameras the suite does not know.

    A dataset may call the suite's robot by a name of its own; then the whole specs are compared when it starts.
    """
    from wamkit.evaluation.protocol import PROTOCOLS

    factory = suite_factory(protocol.suite)
    simulated = factory().robot.name
    fitting = [name for name, other in PROTOCOLS.items() if suite_factory(other.suite)().robot.name == robot.name]
    may_fit = not fitting and set(robot.camera_names) <= set(factory.known_cameras)
    if robot.name == simulated or may_fit:
        return
    known = f"choose --protocol {' or '.join(fitting)}" if fitting else f"no named protocol simulates {robot.name}"
    raise SpecMismatch(
        f"the policy and protocol {protocol.title!r} do not fit: expected a policy of the robot {simulated}, got one "
        f"of {robot.name} (cameras {', '.join(robot.camera_names)}); {known}, or take a policy of {simulated}"
    )


def _pool_maker(options: Options) -> PoolMaker:
    """Where the simulators run.

    Raises:
        ValueError: options that exclude each other.
        ImportError: Ray is asked for and not installed.
    """
    from wamkit.envs.in_process import InProcessPool
    from wamkit.envs.workers import WorkerPool

    if options.ray_address is not None and options.backend != "ray":
        raise ValueError("--ray-address names a Ray cluster; add --backend ray")
    if options.backend == "ray":
        from wamkit.envs.ray_pool import RayPool, require_ray

        if options.workers == 0:
            raise ValueError("--workers 0 runs in this process, --backend ray on other machines; choose one of them")
        require_ray()
        return functools.partial(RayPool, address=options.ray_address)
    return (lambda factory, _: InProcessPool(factory)) if options.workers == 0 else WorkerPool


def warn_about_tasks(trained: Sequence[str], tasks: Sequence[str], sentences: Mapping[str, str]) -> None:
    """Say on which tasks the policy was not trained, when it names those it was.

    Args:
        trained: sentences; empty when the policy does not say.
        tasks: ids of those evaluated.
        sentences: by task id.
    """
    new = [task for task in tasks if sentences[task] not in trained]
    if trained and new:
        logger.warning(
            "the policy was not trained on %s, only on: %s",
            ", ".join(new[:8]) + " …" * (len(new) > 8),
            "; ".join(trained),
        )


def warn_about_versions(trained: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Say which simulator packages are not those that the policy was trained beside; scores depend on them."""
    for name in SIMULATORS:
        if name in trained and name in here and trained[name] != here[name]:
            logger.warning(
                "the policy was trained beside %s %s, but %s is installed here; pictures and physics may differ",
                name,
                trained[name],
                here[name],
            )


def _table(results: Results, rules: str) -> str:
    planner = results.policy.planner
    lines = [f"{results.protocol}, {'without planning' if planner is None else 'planner ' + planner['name']}: {rules}"]
    rows = list(results.tasks.items())
    if len(rows) > 1:
        rows.append(("all", results.overall))
    width = max(len(name) for name, _ in rows)
    lines += [f"  {name:<{width}}  {_score(score)}" for name, score in rows]
    latency = results.latency
    if latency.median_seconds is not None and latency.p95_seconds is not None:
        lines.append(
            f"  policy call: median {latency.median_seconds * 1000:.0f} ms, p95 {latency.p95_seconds * 1000:.0f} ms "
            f"(batches of {latency.mean_batch_size:.1f}"
            f"{', imagining for the recording; --record-episodes 0 times acting alone' * latency.while_recording})"
        )
    return "\n".join(lines)


def _score(score: TaskScore) -> str:
    low, high = score.interval
    lost = f", {score.errors} lost to simulator errors" if score.errors else ""
    steps = "" if score.mean_steps is None else f", {score.mean_steps:.0f} steps"
    rate = "" if score.rate is None else f"{score.rate:.0%} "
    return f"{score.successes}/{score.trials} {rate}(95 % interval {low:.0%} to {high:.0%}){steps}{lost}"
