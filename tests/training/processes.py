"""Trains WAV or WorldVLA `tiny` as one of several processes; run as a program by `Processes`.

It reads a scenario and a folder as a line of JSON, and prints as another what came of it, until its input ends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from families import FAMILIES

import wamkit
from wamkit.models.wav import objective as wav
from wamkit.models.worldvla import objective as worldvla
from wamkit.parallel import process_group, rank, rows_of_this_process
from wamkit.training.prefetch import BatchSource
from wamkit.training.stage import TrainStage
from wamkit.training.trainer import TrainingDiverged, TrainReport, train
from wamkit.types import Batch
from wamkit.weight_files import write_weights

TIMEOUT_S = 600


def stages(steps: int = 2) -> list[TrainStage]:
    """The three stages with everything on that could come apart over processes: masks, shares, draws, averages."""
    video = dataclasses.replace(wav.video_only(), memory_noise=0.3, caption_dropout=0.4)
    value = dataclasses.replace(wav.value_only(), mask_padding=True, num_draws=2)
    action = dataclasses.replace(
        wav.action_full(), mask_padding=True, num_draws=2, video_weight=1.0, video_share=0.5, value_weight=0.5
    )
    # A large eps: Adam's first updates are the signs of gradients, and would blow up rounding where they are near 0.
    shared: dict[str, Any] = {"steps": steps, "batch_size": 4, "learning_rate": 1e-2, "eps": 1e-2}
    return [
        TrainStage(name="video", objective=video, train=("video",), needs_future=True, ema_decay=0.9, **shared),
        TrainStage(name="value", objective=value, train=("value",), needs_future=False, accumulation=2, **shared),
        TrainStage(
            name="action",
            objective=action,
            train=("video", "value", "action"),
            needs_future=True,
            accumulation=2,
            ema_decay=0.9,
            max_grad_norm=0.5,
            **shared,
        ),
    ]


def worldvla_stages() -> list[TrainStage]:
    """Action and world samples together, over two batches a step, with everything that is drawn."""
    objective = dataclasses.replace(worldvla.joint(), history_dropout=0.3)
    shared: dict[str, Any] = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "eps": 1e-2}
    return [
        TrainStage(
            name="joint", objective=objective, train=("transformer",), needs_future=True, accumulation=2, **shared
        )
    ]


def worldvla_model() -> Any:
    """Without residual dropout, whose numbers alone depend on how many processes there are."""
    model: Any = FAMILIES["worldvla"].build(1)
    for layer in model.network.model.layers:
        layer.dropout = 0.0
    return model


class Rows:
    """This process's rows of each batch; the last process may be made to stumble over one of them."""

    def __init__(self, stage: TrainStage, trouble: str | None = None, family: str = "wav") -> None:
        self.source = FAMILIES[family].make_batches(stage)
        self.batch_size, self.trouble = stage.batch_size, trouble if rank() == 1 else None

    def batch(self, step: int) -> Batch:
        batch = self.source.batch(step).rows(rows_of_this_process(self.batch_size))
        if step == 2 and self.trouble == "nan":
            batch.actions[1, 0, 0] = torch.nan
        if step == 2 and self.trouble == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        return batch


def run(
    folder: Path, *, trouble: str | None = None, model: Any = None, family: str = "wav", **changes: Any
) -> TrainReport:
    """Train in a folder with a policy file for every checkpoint."""

    def make_batches(stage: TrainStage) -> BatchSource:
        return Rows(stage, trouble, family)

    def save_policy(path: Path, training: dict[str, Any], weights: Any) -> None:
        path.mkdir(exist_ok=True)
        write_weights(path, weights)

    settings: dict[str, Any] = {"seed": 7, "save_every": 1, "keep": 20, "save_policy": save_policy}
    return train(
        model or FAMILIES["wav"].build(1),
        changes.pop("stages", stages()),
        make_batches,
        folder=folder,
        **settings | changes,
    )


WORLDVLA: dict[str, Any] = {"stages": worldvla_stages(), "family": "worldvla"}


def scenario(name: str, folder: str) -> dict[str, Any]:
    """What one scenario came to on this process."""
    action = stages(4)[-1]
    quick = [dataclasses.replace(action, accumulation=1, ema_decay=None)]
    changes: dict[str, Any] = {
        "all stages": {},
        "bf16": {"precision": "bf16", "activation_checkpointing": True},
        "nan": {"stages": quick, "trouble": "nan"},
        "signal": {"stages": quick, "trouble": "signal"},
        "odd batch": {"stages": [dataclasses.replace(quick[0], batch_size=3)]},
        "long": {"stages": stages(40), "keep": 2},
        "worldvla": WORLDVLA,
        "worldvla bf16": WORLDVLA | {"precision": "bf16", "activation_checkpointing": True},
    }[name]
    if "worldvla" in name:
        changes = changes | {"model": worldvla_model()}
    try:
        report = run(Path(folder), **changes)
    except (ValueError, OSError, TrainingDiverged) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"steps": report.steps, "stopped_by": report.stopped_by, "checkpoint": report.checkpoint.name}


class Processes:
    """Processes that run scenarios together, as a cluster's launcher would start them; a context manager.

    They live on between scenarios, because starting them takes longer than most scenarios.
    """

    def __init__(self, log_folder: Path, num: int = 2) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            **os.environ,
            "PYTHONPATH": str(Path(wamkit.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(num),
        }
        self.logs = [log_folder / f"rank{number}.log" for number in range(num)]
        self.lines: queue.Queue[tuple[int, str]] = queue.Queue()
        self.processes = []
        for number, log in enumerate(self.logs):
            environment = {**common, "RANK": str(number), "LOCAL_RANK": str(number)}
            with log.open("w") as errors:
                process = subprocess.Popen(
                    [sys.executable, __file__],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            self.processes.append(process)
            threading.Thread(target=self._read, args=(number, process.stdout), daemon=True).start()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End them at once; none is left behind."""
        for process in self.processes:
            process.kill()
            process.wait()

    def start(self, name: str, folder: Path) -> None:
        """Ask all processes to run a scenario."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps([name, str(folder)]) + "\n")
            process.stdin.flush()

    def run(self, name: str, folder: Path) -> dict[str, Any]:
        """What a scenario came to, the same on every process."""
        self.start(name, folder)
        outcomes: dict[int, dict[str, Any]] = {}
        while len(outcomes) < len(self.processes):
            number, line = self.lines.get(timeout=TIMEOUT_S)
            assert line, f"process {number} has died: {self.logs[number].read_text()[-3000:]}"
            if line.startswith("{"):
                outcomes[number] = json.loads(line)
        assert all(outcome == outcomes[0] for outcome in outcomes.values()), outcomes
        return outcomes[0]

    def _read(self, number: int, lines: IO[str]) -> None:
        for line in lines:
            self.lines.put((number, line))
        self.lines.put((number, ""))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu"):
        for request in sys.stdin:
            print(json.dumps(scenario(*json.loads(request))), flush=True)
