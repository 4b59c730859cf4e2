"""Training checkpoints: policy folders with the state for resuming in `training_state/`; safetensors and JSON only.

checkpoints/<stage>-step_<n>/            a policy folder, when the trainer can write one
    training_state/state.json            position, recipe, versions
    training_state/network.safetensors   every weight in full precision
    training_state/optimizer.safetensors AdamW's moments (not after a stage's last step)
    training_state/average.safetensors   moving average, when the stage keeps one (likewise)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wamkit.atomic import atomic_folder, recover_folder, remove_folder
from wamkit.checkpoint import TRAINING_STATE
from wamkit.training.optim import MovingAverage, load_moments, moments_to_tensors
from wamkit.weight_files import load_state, read_json, read_weights, write_json, write_weights

_FORMAT = 1


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
    """

    folder: Path
    position: Position
    recipe: dict[str, Any]
    torch_version: str

    @property
    def state(self) -> Path:
        """Folder with the state for resuming."""
        return self.folder / TRAINING_STATE

    def load_network(self, network: nn.Module) -> None:
        """Give the network the saved weights.

        Raises:
            ValueError: they do not fit, or a file is damaged.
        """
        source = self.state / "network.safetensors"
        load_state(network, self._read("network"), source)

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
        load_moments(optimizer, trained, self._read("optimizer"), str(self.state / "optimizer.safetensors"))
        if average is not None:
            average.load(self._read("average"), str(self.state / "average.safetensors"))

    def _read(self, stem: str) -> dict[str, Tensor]:
        try:
            index = self.state / f"{stem}.safetensors.index.json"
            return read_weights(index if index.is_file() else self.state / f"{stem}.safetensors")
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(
                f"the checkpoint {self.folder} cannot be resumed: {error}. Remove that folder to resume from the one "
                "before it"
            ) from error


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: holds one folder per checkpoint; made when missing, and what a killed writer left there is cleaned up.
        keep: newest checkpoints kept; the last one of each stage always stays.

    Raises:
        ValueError: `keep` is below 1.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"expected keep >= 1 checkpoints, got {keep}")
        self.folder = folder
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        # A complete but not yet renamed checkpoint takes its place; everything else left over is a part and goes.
        for leftover in sorted(folder.glob(".*.new")):
            recover_folder(folder / leftover.name.removeprefix(".").removesuffix(".new"))
        for leftover in [*folder.glob(".*.partial"), *folder.glob(".*.old")]:
            shutil.rmtree(leftover)

    def all(self) -> list[Checkpoint]:
        """Checkpoints in the order they were reached.

        Raises:
            ValueError: a state.json is damaged or of an unknown format.
        """
        files = [file for file in self.folder.glob(f"*/{TRAINING_STATE}/state.json") if file.is_file()]
        found = [_read_state(file) for file in files]
        return sorted(found, key=lambda item: (item.position.stage_index, item.position.step))

    def latest(self) -> Checkpoint | None:
        """The checkpoint to resume from, if there is one."""
        return next(reversed(self.all()), None)

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
        save_policy: Callable[[Path, dict[str, Any]], None] | None,
    ) -> Path:
        """Write a checkpoint atomically, then remove those that need not be kept.

        Args:
            position: how far training has come.
            recipe: compared when resuming.
            record: content of training.json; the position is added.
            network: all its weights are saved in their own type.
            optimizer: saved unless the stage is finished.
            trained: the parameters it trains, by name.
            average: moving average; the policy is saved with it, and it is saved itself unless the stage is finished.
            save_policy: writes a policy folder to the path it is given, from the network as it is at that moment.

        Returns:
            The checkpoint's folder.
        """
        path = self.folder / f"{position.stage}-step_{position.step}"
        with atomic_folder(path) as folder:
            if save_policy is not None:
                progress = {"stage": position.stage, "step": position.step, "averaged": average is not None}
                with average.applied() if average is not None and not position.finished else nullcontext():
                    save_policy(folder, {**record, **progress})
            state = folder / TRAINING_STATE
            state.mkdir(parents=True)
            write_weights(state, network.state_dict(), stem="network")
            # The next stage starts with a new optimiser: a finished stage needs no moments.
            if not position.finished:
                write_weights(state, moments_to_tensors(optimizer, trained), stem="optimizer")
                if average is not None:
                    write_weights(state, average.tensors, stem="average")
            content = {
                "format": _FORMAT,
                "position": asdict(position),
                "recipe": dict(recipe),
                "torch": torch.__version__,
            }
            write_json(state / "state.json", content)
        self._prune()
        return path

    def _prune(self) -> None:
        checkpoints = self.all()
        last_of_stage = {item.position.stage: item.folder for item in checkpoints}
        kept = {item.folder for item in checkpoints[-self._keep :]} | set(last_of_stage.values())
        for item in checkpoints:
            if item.folder not in kept:
                remove_folder(item.folder)


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
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no training state ({error}); remove {file.parent.parent} to resume from the one before it"
        ) from error
