"""Serve a policy to robots.

One port speaks to all: WebSockets on / (openpi's and WAV's clients, and wamkit_client) and on /vla-eval, HTTP on
/predict, /act and /reset, counters on /metrics, and a live page on /. Robots share policy calls; each has its own
history. The port opens when the policy is warm. Stop with Ctrl-C or SIGTERM: robots get the answers they wait for.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from wamkit.cli.policy import PolicyOptions
from wamkit.cli.token import read_token

if TYPE_CHECKING:
    from wamkit.serving.config import ServerConfig
    from wamkit.serving.http import Part
    from wamkit.spec import PolicySpec


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `wamkit serve`."""

    policy: Annotated[Path, tyro.conf.Positional]
    """Policy folder, or a training checkpoint."""
    host: str = "127.0.0.1"
    """Address to listen at: by default this machine alone; 0.0.0.0 lets in every machine that reaches this one, so ask
    for a token then."""
    port: int = 8000
    """Port; 0 takes a free one and tells it."""
    token_file: Path | None = None
    """File with the token that clients must name; the environment variable WAMKIT_TOKEN does the same."""
    certificate: Path | None = None
    """PEM certificate, for TLS; with --key."""
    key: Path | None = None
    """Its private key."""
    running: Annotated[PolicyOptions, tyro.conf.arg(name="")] = field(default_factory=PolicyOptions)
    """How the policy runs."""
    memory_threshold: int = 1
    """Executed actions per shift of the policy's observation memory."""
    max_batch: int = 8
    """Robots that share a policy call; 1 shares none."""
    batch_wait_ms: float = 2.0
    """How long a request waits for others to share its call, and only for robots that have asked before."""
    batching: Literal["exact", "free"] = "free"
    """exact shares calls only where every robot gets, bit for bit, what it would get alone; requests may ask for it."""
    max_waiting: int = 64
    """Requests that may wait; further ones are told that the server is busy."""
    max_connections: int = 64
    """Robots connected at once."""
    max_message_mb: float | None = None
    """Largest request in MiB; by default what the policy's images take, eightfold, or pictures of 1280x720, and one."""
    idle_s: float = 600.0
    """Seconds without a request after which a connection is closed."""
    transfer_s: float = 10.0
    """Seconds that a request may take to arrive, or an answer to leave, once it has begun; more for a slow network."""
    grace_s: float = 10.0
    """Seconds to finish what is under way when the server is stopped."""
    values: bool = False
    """Send the policy's values with every answer; it takes time, and a request may ask for them itself."""
    seed: int = 0
    """Of the draws in episodes whose robots name no seed."""
    max_search_work: int = 2**14
    """Largest search that a request may ask for with explore_config: rounds times videos times values times denoising
    steps. All robots wait while it is computed; 0 allows none but the server's own."""
    camera: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further name of a camera in requests, as KEY=CAMERA; may be given several times, as those that follow."""
    state_key: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Key of requests whose numbers, one after the other, are the state; by default the usual names of one."""
    ignore_key: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Key of requests that is accepted and not read."""
    part: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Part of /predict's form, as NAME=CAMERA:HEIGHTxWIDTH; by default WAV's for three cameras, else the cameras."""
    imagine_every_s: float = 1.0
    """Seconds between two imagined futures on the live page while somebody looks at it; 0 imagines none."""


def run(options: Options) -> int:
    """Serve until stopped."""
    config = make_config(options)
    options.running.check()
    leasts = {"memory_threshold": 1, "max_batch": 1, "max_waiting": 1, "seed": 0, "max_search_work": 0}
    for name, least in leasts.items():
        if getattr(options, name) < least:
            raise ValueError(f"expected --{name.replace('_', '-')} of {least} or more, got {getattr(options, name)}")

    from wamkit.checkpoint import read_policy
    from wamkit.serving.server import Server, bind, build, tls

    tls(config)  # wrong files and ports are told before anything heavy is loaded
    files = read_policy(options.policy)
    parts = make_parts(options.part, files.spec)
    batching = make_batching(options)
    with bind(config) as listening:
        policy = options.running.load(options.policy, memory_threshold=options.memory_threshold)
        identity = options.running.identity(options.policy, policy, memory_threshold=options.memory_threshold)
        app = build(
            policy,
            config,
            identity=asdict(identity),
            batching=batching,
            camera_keys=pairs(options.camera),
            state_keys=options.state_key,
            ignored=frozenset(options.ignore_key),
            parts=parts,
            values=options.values,
            seed=options.seed,
            imagine_every_s=options.imagine_every_s,
            max_search_work=options.max_search_work,
        )
        server = Server(app, listening)
        server.run(on_open=lambda: _tell(server.url, server.address, config))
    if not app.service.inference.stop(0):
        print("the policy still computed for a robot; it was not waited for", file=sys.stderr, flush=True)
        os._exit(0)  # nothing can interrupt it, and everything else has ended
    return 0


def _tell(url: str, address: str, config: ServerConfig) -> None:
    print(f"serving at {url}; live page: {address}/" + ("" if config.token is None else "#token=TOKEN"), flush=True)
    if config.token is None and config.host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"warning: everyone who reaches {config.host} can use this server; ask for a token: --token-file",
            flush=True,
        )


def make_config(options: Options) -> ServerConfig:
    """Where to listen and what to allow.

    Raises:
        ValueError: an option out of range.
        FileNotFoundError: no token file.
    """
    from wamkit.serving.config import ServerConfig

    if options.max_message_mb is not None and options.max_message_mb <= 0:
        raise ValueError(f"expected --max-message-mb above 0, got {options.max_message_mb}")
    return ServerConfig(
        host=options.host,
        port=options.port,
        token=read_token(options.token_file),
        certificate=options.certificate,
        key=options.key,
        max_message_bytes=None if options.max_message_mb is None else round(options.max_message_mb * 2**20),
        max_connections=options.max_connections,
        idle_s=options.idle_s,
        transfer_s=options.transfer_s,
        grace_s=options.grace_s,
    )


def make_batching(options: Options) -> Any:
    """How robots share calls.

    Raises:
        ValueError: an option out of range.
    """
    from wamkit.serving.inference import Batching

    return Batching(
        max_batch=options.max_batch,
        max_wait_s=options.batch_wait_ms / 1000,
        exact=options.batching == "exact",
        max_waiting=options.max_waiting,
    )


def pairs(given: tuple[str, ...]) -> dict[str, str]:
    """`KEY=CAMERA`, taken apart.

    Raises:
        ValueError: another form.
    """
    found = {}
    for text in given:
        key, sign, camera = text.rpartition("=")
        if not key or not sign or not camera:
            raise ValueError(f"expected --camera as KEY=CAMERA, got {text!r}")
        found[key] = camera
    return found


def make_parts(given: tuple[str, ...], spec: PolicySpec) -> tuple[Part, ...]:
    """Parts of `/predict`'s form.

    Raises:
        ValueError: another form than `NAME=CAMERA:HEIGHTxWIDTH`.
    """
    from wamkit.serving.http import Part, default_parts

    parts = []
    for text in given:
        name, _, rest = text.partition("=")
        camera, _, size = rest.rpartition(":")
        height, _, width = size.partition("x")
        if not name or not camera or not (height.isdecimal() and width.isdecimal() and int(height) * int(width)):
            raise ValueError(f"expected --part as NAME=CAMERA:HEIGHTxWIDTH, got {text!r}")
        parts.append(Part(name=name, camera=camera, height=int(height), width=int(width)))
    return tuple(parts) or default_parts(spec)
