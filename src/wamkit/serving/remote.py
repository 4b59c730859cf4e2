"""A policy on a server, acting as if it were here: the same protocol, evaluated by the same code, through the wire."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from wamkit_client import Client, ConnectionLost, PolicyChanged
from wamkit_client.wire import check_same

from wamkit.serving.service import PROTOCOL
from wamkit.spec import PolicySpec
from wamkit.types import ActionChunk, Imagined


class RemotePolicy:
    """A `types.RememberingPolicy` behind a `wamkit serve`; every slot has a connection of its own.

    It asks for exact batching, so that each robot gets, bit for bit, what the policy would give it in this process.

    Args:
        url: of the server.
        token: that the server wants to hear.
        timeout_s: how long an answer may take.

    Raises:
        ConnectionLost: no server.
        PermissionError: it wants another token.
        ValueError: it serves something else than a policy of ours.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 600.0) -> None:
        self._url, self._token, self._timeout_s = url, token, timeout_s
        self._clients: dict[int, Client] = {}
        self._workers = ThreadPoolExecutor(64, thread_name_prefix="remote")
        with self._connect() as client:
            self.metadata = metadata = client.metadata
        if metadata.get("server") != "wamkit" or metadata.get("protocol_version") != PROTOCOL:
            raise ValueError(
                f"expected a wamkit server that speaks protocol {PROTOCOL} at {url}, got {metadata.get('server')!r} "
                f"with {metadata.get('protocol_version')!r}; use the same version of wamkit on both sides"
            )
        self.spec = PolicySpec.from_dict(metadata["policy_spec"])

    @property
    def fingerprint(self) -> str:
        """Identity of the weights, for records."""
        return str(self.metadata["identity"]["fingerprint"])

    def reset(self, slots: Sequence[int], *, seeds: Sequence[int]) -> None:
        """Start a new episode in each slot.

        Raises:
            ValueError: not one seed for each slot.
            ServerError: the server refuses.
            PolicyChanged: it serves another policy by now.
        """
        for slot, seed in zip(slots, seeds, strict=True):
            if slot not in self._clients:
                client = self._connect()
                try:
                    check_same(self._url, self.metadata, client.metadata)
                except PolicyChanged:
                    client.close()
                    raise
                self._clients[slot] = client
            self._clients[slot].reset(seed=seed)
            self._clients[slot].reconnects = 0

    def act(
        self,
        slots: Sequence[int],
        *,
        video: UInt8[Tensor, "b v h w c"],
        state: Float[Tensor, "b s"],
        task: list[str],
        executed: Sequence[int],
        record: bool = False,
    ) -> ActionChunk:
        """One chunk for each slot, see `Policy.act`; the requests travel at the same time.

        Raises:
            ValueError: a slot that was never reset.
            ServerError: the server refuses, or fails.
            ConnectionLost: the server was lost, and with it what it remembered of an episode.
        """
        asked = [{"state": state[row].numpy(), "prompt": task[row], "imagine": record} for row in range(len(slots))]
        replies = self._ask(slots, video, executed, asked)
        phases = [reply["policy_timing"] for reply in replies]
        return ActionChunk(
            actions=torch.from_numpy(np.stack([reply["actions"] for reply in replies])),
            imagined=_imagined(replies) if record else None,
            timing={key.removesuffix("_ms"): max(phase[key] for phase in phases) / 1000 for key in phases[0]},
        )

    def remember(self, slots: Sequence[int], *, video: UInt8[Tensor, "b v h w c"], executed: Sequence[int]) -> None:
        """Take frames into the slots' memories without acting, see `Policy.remember`.

        Raises:
            What `act` raises.
        """
        self._ask(slots, video, executed, [{"compute_kv_cache": True}] * len(slots))

    def close(self) -> None:
        """Leave the server."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._workers.shutdown()

    def _ask(
        self, slots: Sequence[int], video: Tensor, executed: Sequence[int], asked: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """A reply for each slot to what is asked of what it sees; the requests travel at the same time."""
        unknown = [slot for slot in slots if slot not in self._clients]
        if unknown:
            raise ValueError(f"slots {unknown} have no episode; call reset(slots, seeds=…) first")
        cameras = list(self.spec.robot.camera_names)
        requests = [
            {"obs": frame.numpy(), "cameras": cameras, "executed": count, "batching": "exact", **more}
            for frame, count, more in zip(video, executed, asked, strict=True)
        ]
        return list(self._workers.map(self._infer, slots, requests))

    def _infer(self, slot: int, request: dict[str, Any]) -> dict[str, Any]:
        client = self._clients[slot]
        reply = client.infer(request)
        if client.reconnects:
            raise ConnectionLost(
                f"the connection to {self._url} was lost in the middle of an episode, which the server has forgotten"
            )
        return reply

    def _connect(self) -> Client:
        return Client(self._url, token=self._token, timeout_s=self._timeout_s)


def _imagined(replies: Sequence[dict[str, Any]]) -> Imagined:
    def stacked(key: str) -> Tensor | None:
        return torch.from_numpy(np.stack([reply[key] for reply in replies])) if key in replies[0] else None

    parts = Imagined(video=stacked("predicted_video"), value=stacked("value"), scores=stacked("scores"))
    steps = replies[0].get("video_steps")
    return dataclasses.replace(parts, video_steps=tuple(steps) if steps else None)
