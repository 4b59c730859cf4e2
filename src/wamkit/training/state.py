"""Training checkpoints: policy folders with the state for resuming in `training_state/`; safetensors and JSON only.

checkpoints/<stage>-step_<n>/            a policy folder, when the trainer can write one
    training_state/state.json            position, recipe, versions
    training_state/network.safetensors   every weight in full precision
    training_state/optimizer.safetensors AdamW's moments (not after a stage's last step)
    training_state/average.safetensors   moving average, when the stage keeps one (likewise)

Processes that share the weights (`ShardedLoss`) write `training_state/shards/` instead, each its own parts of all
three. Either form is read by any number of processes. The folder has to be one that all processes see.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wamkit.atomic import atomic_folder, recover_folder, remove_folder
from wamkit.checkpoint import TRAINING_STATE
from wamkit.parallel import from_rank_zero
from wamkit.training.optim import MovingAverage, load_moments, moments_like, moments_to_tensors
from wamkit.training.shard_files import read_shards, shapes_in, write_shards
from wamkit.training.sharding import full_weights, is_sharded, sharded_like
from wamkit.weight_files import load_state, read_json, read_weights, write_json, write_weights

_FORMAT = 1
_SHARDS = "shards"

SavePolicy = Callable[[Path, dict[str, Any], Mapping[str, Tensor]], None]
"""Writes a policy folder to a path, given the content of training.json and the network's whole state dict."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far training has come.

    Args:
        stage_index: which stage, from 0.
        stage: its name.
        step: optimiser steps of that stage completed.
        finished: whether that was the stage's last step.
        wall_s: seconds of training so far, over all runs.
    """

    stage_index: int
    stage: str
    step: int
    finished: bool
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A saved checkpoint.

    Args:
        folder: the checkpoint's folder, a policy folder when the trainer could write one.
        position: how far training had come.
        recipe: the resolved recipe it was trained with.
        torch_version: of the run that wrote it.
        shards: files in `shards/`, when several processes wrote it.
    """

    folder: Path
    position: Position
    recipe: dict[str, Any]
    torch_version: str
    shards: tuple[str, ...] = ()

    @property
    def state(self) -> Path:
        """Folder with the state for resuming."""
        return self.folder / TRAINING_STATE

    def load_network(self, network: nn.Module) -> None:
        """Give the network the saved weights.

        Raises:
            ValueError: they do not fit, or a file is damaged.
        """
        load_state(network, self._read("network", network.state_dict()), self._source("network"))

    def load_optimizer(
        self,
        optimizer: torch.optim.AdamW,
        trained: Mapping[str, nn.Parameter],
        average: MovingAverage | None,
    ) -> None:
        """Give the optimiser its moments and the moving average its values, as they were after `position.step`.

        Raises:
            ValueError: they do not fit the trained parameters, or a file is damaged.
        """
        moments = self._read("optimizer", moments_like(trained))
        load_moments(optimizer, trained, moments, str(self._source("optimizer")))
        if average is not None:
            average.load(self._read("average", average.tensors), str(self._source("average")))

    def _source(self, stem: str) -> Path:
        return self.state / _SHARDS if self.shards else self.state / f"{stem}.safetensors"

    def _read(self, stem: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The saved tensors of one kind, sharded as those of the same name in `like` are."""
        try:
            if self.shards:
                return self._read_shards(stem, like)
            index = self.state / f"{stem}.safetensors.index.json"
            tensors = read_weights(index if index.is_file() else self._source(stem))
            return {
                name: sharded_like(tensor, like[name]) if name in like else tensor for name, tensor in tensors.items()
            }
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(
                f"the checkpoint {self.folder} cannot be resumed: {error}. Remove that folder to resume from the one "
                "before it"
            ) from error

    def _read_shards(self, stem: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        folder = self.state / _SHARDS
        missing = [name for name in self.shards if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} was written as {len(self.shards)} shards, not found: {missing}")
        tensors: dict[str, Tensor] = {}
        for name, (shape, dtype) in shapes_in(folder).items():
            kind, own = name.split(".", 1)
            if kind != stem:
                continue
            model = like.get(own)
            if model is None or list(model.shape) != shape:
                # Read as it is; whoever wanted something else will name it.
                tensors[own] = torch.empty(shape, dtype=dtype)
            else:
                tensors[own] = torch.empty_like(model, dtype=dtype)
        read_shards(folder, {f"{stem}.{name}": tensor for name, tensor in tensors.items()})
        return tensors


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: holds one folder per checkpoint; made when missing, and what a killed writer left there is cleaned up.
        keep: newest checkpoints kept; the last one of each stage always stays.
        keep_policy_every: the policies of steps that it divides stay too, without the state for resuming; 0 keeps none.

    Raises:
        ValueError: `keep` is below 1, or `keep_policy_every` below 0.
    """

    def __init__(self, folder: Path, keep: int, keep_policy_every: int = 0) -> None:
        if keep < 1 or keep_policy_every < 0:
            raise ValueError(f"expected keep >= 1 and keep_policy_every >= 0, got {keep} and {keep_policy_every}")
        self.folder = folder
        self._keep = keep
        self._keep_policy_every = keep_policy_every
        from_rank_zero(self._clean_up)

    def _clean_up(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # A complete but not yet renamed checkpoint takes its place; everything else left over is a part and goes.
        for leftover in sorted(self.folder.glob(".*.new")):
            recover_folder(self.folder / leftover.name.removeprefix(".").removesuffix(".new"))
        partial = [*self.folder.glob(".*.partial"), *self.folder.glob(f"*/.{TRAINING_STATE}.partial")]
        for leftover in [*partial, *self.folder.glob(".*.old")]:
            shutil.rmtree(leftover)

    def all(self) -> list[Checkpoint]:
        """Checkpoints in the order they were reached.

        Raises:
            ValueError: a state.json is damaged or of an unknown format.
        """
        return _checkpoints_in(self.folder)

    def latest(self) -> Checkpoint | None:
        """The checkpoint to resume from, if there is one."""
        return from_rank_zero(lambda: next(reversed(self.all()), None))

    def save(
        self,
        *,
        position: Position,
        recipe: Mapping[str, Any],
        record: Mapping[str, Any],
        network: nn.Module,
        optimizer: torch.optim.AdamW,
        trained: Mapping[str, nn.Parameter],
        average: MovingAverage | None,
        save_policy: SavePolicy | None,
    ) -> Path:
        """Write a checkpoint atomically, then remove those that need not be kept.

        Every process calls it; rank 0 makes the folder, the others write their shards into it, and rank 0 renames it
        when all is on the disk.

        Args:
            position: how far training has come.
            recipe: compared when resuming.
            record: content of training.json; the position is added.
            network: all its weights are saved in their own type.
            optimizer: saved unless the stage is finished.
            trained: the parameters it trains, by name.
            average: moving average; the policy is saved with it, and it is saved itself unless the stage is finished.
            save_policy: writes the policy beside the state; called on rank 0.

        Returns:
            The checkpoint's folder.
        """
        path = self.folder / f"{position.stage}-step_{position.step}"
        content = {
            "format": _FORMAT,
            "position": asdict(position),
            "recipe": dict(recipe),
            "torch": torch.__version__,
        }
        with ExitStack() as stack:
            folder = from_rank_zero(lambda: stack.enter_context(atomic_folder(path)))
            if save_policy is not None:
                progress = {"stage": position.stage, "step": position.step, "averaged": average is not None}
                with average.applied() if average is not None and not position.finished else nullcontext():
                    weights = full_weights(network)
                    from_rank_zero(lambda: save_policy(folder, {**record, **progress}, weights))
                    del weights
            state = folder / TRAINING_STATE
            tensors = {"network": network.state_dict()}
            # The next stage starts with a new optimiser: a finished stage needs no moments.
            if not position.finished:
                tensors["optimizer"] = moments_to_tensors(optimizer, trained)
                if average is not None:
                    tensors["average"] = average.tensors
            if is_sharded(network):
                content["shards"] = _write_shards(state / _SHARDS, tensors)
            else:
                state.mkdir(parents=True)
                for stem, named in tensors.items():
                    write_weights(state, named, stem=stem)

            def complete() -> None:
                write_json(state / "state.json", content)
                stack.close()
                self._prune()

            from_rank_zero(complete)
        return path

    def _prune(self) -> None:
        checkpoints = self.all()
        last_of_stage = {item.position.stage: item.folder for item in checkpoints}
        kept = {item.folder for item in checkpoints[-self._keep :]} | set(last_of_stage.values())
        for item in checkpoints:
            if item.folder not in kept:
                stays = self._keep_policy_every and item.position.step % self._keep_policy_every == 0
                remove_folder(item.state if stays else item.folder)


def has_checkpoint(run_folder: Path) -> bool:
    """Whether a run in this folder would be continued and not begun."""
    return any((run_folder / "checkpoints").glob(f"*/{TRAINING_STATE}/state.json"))


def latest_checkpoint(run_folder: Path) -> Checkpoint | None:
    """The checkpoint that a run in this folder would be continued from, if there is one; nothing there is touched."""
    return next(reversed(_checkpoints_in(run_folder / "checkpoints")), None)


def _checkpoints_in(folder: Path) -> list[Checkpoint]:
    files = [file for file in folder.glob(f"*/{TRAINING_STATE}/state.json") if file.is_file()]
    found = [_read_state(file) for file in files]
    return sorted(found, key=lambda item: (item.position.stage_index, item.position.step))


def _write_shards(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Write the tensors of every kind, `KIND.NAME`, together with the other processes; names of the files."""
    from_rank_zero(lambda: folder.mkdir(parents=True))
    write_shards(
        folder, {f"{stem}.{name}": tensor for stem, named in tensors.items() for name, tensor in named.items()}
    )
    return from_rank_zero(lambda: sorted(file.name for file in folder.iterdir()))


def _read_state(file: Path) -> Checkpoint:
    data = read_json(file)
    try:
        if data["format"] != _FORMAT:
            raise ValueError(
                f"{file}: expected format {_FORMAT}, got {data['format']}; resume with the version that wrote it"
            )
        return Checkpoint(
            folder=file.parent.parent,
            position=Position(**data["position"]),
            recipe=data["recipe"],
            torch_version=data["torch"],
            shards=tuple(data.get("shards", ())),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no training state ({error}); remove {file.parent.parent} to resume from the one before it"
        ) from error
