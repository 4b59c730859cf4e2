"""One trainer for every family: stages in order, atomic checkpoints, and a resume that equals never having stopped.

Batch and random draws of step n are pure functions of (seed, stage, n), so weights, moments, moving average and
position are the whole state. On one process and one kind of machine a resumed run is bit for bit the uninterrupted one.

Several processes (`wamkit.parallel.process_group`) train one model: each takes its rows of every batch and holds its
part of the weights, and the loss curve is that of one process up to rounding. Rank 0 alone writes metrics and policies.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wamkit.draws import TrainingDraws, seeded
from wamkit.lock import FolderLock
from wamkit.parallel import (
    any_process,
    from_rank_zero,
    gathered,
    local_device,
    mean_over_processes,
    process_group,
    rank,
    rows_of_this_process,
    world_size,
)
from wamkit.progress import ProgressBar
from wamkit.training.interrupt import StopRequest, stop_on_signals
from wamkit.training.log import MetricsLog
from wamkit.training.optim import MovingAverage, make_optimizer, restored_requires_grad, select_parameters
from wamkit.training.prefetch import BatchSource, prefetched
from wamkit.training.record import training_record
from wamkit.training.resuming import refuse_another_run, resolved_run, warn_of_another_torch
from wamkit.training.sharding import (
    Precision,
    ShardedLoss,
    clip_gradients,
    full_weights,
    recomputed_activations,
)
from wamkit.training.stage import TrainStage, learning_rate_at
from wamkit.training.state import Checkpoint, CheckpointStore, Position, SavePolicy
from wamkit.types import Batch, Trainable

logger = logging.getLogger(__name__)


Validate = Callable[[TrainStage, int, Mapping[str, Tensor]], Mapping[str, Any]]
"""Measures weights: the stage, the steps of it done and the network's whole state dict -> JSON-ready numbers."""


class TrainingDiverged(RuntimeError):
    """A loss or gradient is no longer finite; the message names stage, step and episodes."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a call of `train` did.

    Args:
        folder: the run's folder, with `metrics.jsonl` and `checkpoints/`.
        checkpoint: the newest checkpoint; a policy folder when `save_policy` was given.
        resumed_from: the checkpoint this call started from, or `None`.
        steps: optimiser steps done by this call.
        stopped_by: name of the signal that stopped it before the end, or `None` when training is complete.
        losses: stage -> loss of its last step, for the stages this call worked on.
        wall_s: seconds of training over all calls.
        training: the content for training.json.
    """

    folder: Path
    checkpoint: Path
    resumed_from: Path | None
    steps: int
    stopped_by: str | None
    losses: dict[str, float]
    wall_s: float
    training: dict[str, Any]


def train(
    model: Trainable,
    stages: Sequence[TrainStage],
    make_batches: Callable[[TrainStage], BatchSource],
    *,
    folder: Path | str,
    seed: int,
    save_every: int,
    save_policy: SavePolicy | None = None,
    validate: Validate | None = None,
    validate_every: int = 0,
    log: Callable[[dict[str, Any]], None] | None = None,
    resume: bool = True,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    activation_checkpointing: bool = False,
    keep: int = 2,
    keep_policy_every: int = 0,
    recipe: Mapping[str, Any] | None = None,
    data_fingerprint: str | None = None,
) -> TrainReport:
    """Run the stages in order, each from where the one before it ended; leaves the trained weights in `model.network`.

    Calling it again with the same recipe continues after the newest checkpoint, or returns at once when all is done.
    SIGTERM and SIGINT save after the current step and return.

    Under a launcher, or in bf16, the weights are sharded (`ShardedLoss`) and stay so: `sharding.full_weights` gives
    them whole. Another number of processes may continue a run as long as it divides every stage's batch.

    Args:
        model: what is trained; its `loss` takes every random number from the draws that it is given.
        stages: in order.
        make_batches: gives a stage's batches; batch number `step * accumulation + i` is the i-th of a step. Of each, a
            process gives `parallel.rows_of_this_process(stage.batch_size)`.
        folder: `metrics.jsonl` and `checkpoints/` go there.
        seed: of every draw.
        save_every: steps between checkpoints; the last step of a stage is always saved.
        save_policy: writes a policy folder to a path (with `write_policy`), given the content of training.json and the
            weights to publish, averaged if the stage averages them.
        validate: measures the weights that would be published, on rank 0; `validation.jsonl` keeps what it gives. It
            must leave the network and torch's generators alone.
        validate_every: steps between validations, besides one at the end of each stage; 0 never validates.
        log: called with every row of the metrics file, for instance to pass it on to a tracker.
        resume: continue from the folder's newest checkpoint; `False` insists on a folder without checkpoints.
        device: where the network and the batches go; codecs that a family keeps beside its network are moved by the
            caller.
        precision: of the compute; weights, gradients' averages and moments are fp32 in any case.
        activation_checkpointing: keep only the inputs of each block and compute the rest twice; changes no number.
        keep: newest checkpoints kept, besides the last one of each stage.
        keep_policy_every: policies of steps of a stage that it divides stay too, without the state for resuming; needs
            `save_policy`, and that `save_every` divides it. 0 keeps none.
        recipe: the caller's own settings (model configuration, data), plain or dataclasses; recorded, and compared when
            resuming.
        data_fingerprint: identifies the dataset; recorded, and compared when resuming.

    Returns:
        What was done, and where the newest checkpoint is.

    Raises:
        ValueError: an unknown part, a changed recipe, a damaged checkpoint, a folder in use; it says what to do.
        RuntimeError: `WORLD_SIZE` and the process group disagree.
        TrainingDiverged: a loss or gradient is not finite; the last good checkpoint stays.
        DiskFull: no room for a checkpoint; the last good one stays.
    """
    if save_every < 1 or seed < 0 or validate_every < 0:
        raise ValueError(
            f"expected save_every >= 1 steps, validate_every >= 0 and seed >= 0, got save_every={save_every}, "
            f"validate_every={validate_every} and seed={seed}"
        )
    if keep_policy_every < 0 or keep_policy_every % save_every or (keep_policy_every and save_policy is None):
        raise ValueError(
            f"expected keep_policy_every of 0, or a multiple of save_every={save_every} together with save_policy, got "
            f"{keep_policy_every}"
        )
    folder, device = Path(folder), local_device(device)
    resolved = resolved_run(stages, seed=seed, recipe=recipe, data_fingerprint=data_fingerprint, precision=precision)
    for stage in stages:
        # An unknown part in the last stage must not be found out after the first has run.
        with restored_requires_grad(model.network):
            select_parameters(model, stage)
    with process_group(device, alone=precision != "fp32"), ExitStack() as stack:
        for stage in stages:
            rows_of_this_process(stage.batch_size)
        from_rank_zero(lambda: stack.enter_context(FolderLock(folder, doing="training in")))
        store = CheckpointStore(folder / "checkpoints", keep, keep_policy_every)
        latest = store.latest()
        if latest is not None:
            refuse_another_run(latest, resolved, folder, resume)
            warn_of_another_torch(latest)
        record = training_record(recipe=resolved, seed=seed, data_fingerprint=data_fingerprint)
        if world_size() > 1:
            record["num_processes"] = world_size()
        model.network.to(device)
        sharded = ShardedLoss(model, device, precision) if world_size() > 1 or precision != "fp32" else None
        run = _Run(
            model=model,
            stages=list(stages),
            make_batches=make_batches,
            seed=seed,
            save_every=save_every,
            save_policy=save_policy,
            validate=validate if validate_every else None,
            validate_every=validate_every,
            log=log,
            device=device,
            store=store,
            recipe=resolved,
            record=record,
            sharded=sharded,
        )
        for context in (
            restored_requires_grad(model.network),
            _training_mode(model.network),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            recomputed_activations(model.network) if activation_checkpointing else nullcontext(),
        ):
            stack.enter_context(context)
        return run.execute(folder, latest)


@dataclass(kw_only=True)
class _Run:
    """One call of `train`: what it was given, and what it counts as it goes."""

    model: Trainable
    stages: list[TrainStage]
    make_batches: Callable[[TrainStage], BatchSource]
    seed: int
    save_every: int
    save_policy: SavePolicy | None
    validate: Validate | None
    validate_every: int
    log: Callable[[dict[str, Any]], None] | None
    device: torch.device
    store: CheckpointStore
    recipe: dict[str, Any]
    record: dict[str, Any]
    sharded: ShardedLoss | None
    started_s: float = field(default_factory=time.monotonic)
    checkpoint: Path | None = None
    steps: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    metrics: MetricsLog | None = None
    validations: MetricsLog | None = None

    def execute(self, folder: Path, latest: Checkpoint | None) -> TrainReport:
        """Run what is left."""
        first, position = 0, None
        if latest is not None:
            latest.load_network(self.model.network)
            self.checkpoint = latest.folder
            self.started_s -= latest.position.wall_s
            first = latest.position.stage_index + int(latest.position.finished)
            position = (latest.position.stage, latest.position.step)
            if first < len(self.stages):
                logger.info("resuming after step %d of stage %r, from %s", position[1], position[0], latest.folder)
        stopped_by = None
        with ExitStack() as stack, stop_on_signals() as request:

            def open_metrics() -> None:
                names = [stage.name for stage in self.stages]
                metrics = MetricsLog(folder / "metrics.jsonl", names, position)
                self.metrics = stack.enter_context(closing(metrics))
                if self.validate is not None:
                    validations = MetricsLog(folder / "validation.jsonl", names, position)
                    self.validations = stack.enter_context(closing(validations))

            from_rank_zero(open_metrics)
            for index in range(first, len(self.stages)):
                unfinished = latest if latest is not None and latest.position.stage_index == index else None
                finished, stop = self._run_stage(index, unfinished, request)
                if stop and not (finished and index == len(self.stages) - 1):
                    stopped_by = next(filter(None, gathered(request.signal)))
                    if rank() == 0:
                        logger.warning("stopped by %s; saved in %s; run again to continue", stopped_by, self.checkpoint)
                    break
        assert self.checkpoint is not None
        return TrainReport(
            folder=folder,
            checkpoint=self.checkpoint,
            resumed_from=latest.folder if latest is not None else None,
            steps=self.steps,
            stopped_by=stopped_by,
            losses=self.losses,
            wall_s=time.monotonic() - self.started_s,
            training=self.record,
        )

    def _run_stage(self, index: int, unfinished: Checkpoint | None, request: StopRequest) -> tuple[bool, bool]:
        """Run a stage to its end, or until a stop is requested; says whether it ended, and whether to stop."""
        stage = self.stages[index]
        trained = select_parameters(self.model, stage)
        if self.sharded is not None:
            self.sharded.begin_stage()
        optimizer = make_optimizer(stage, trained)
        average = MovingAverage(trained, stage.ema_decay) if stage.ema_decay is not None else None
        first = 0
        if unfinished is not None:
            unfinished.load_optimizer(optimizer, trained, average)
            first = unfinished.position.step
        title = f"{index + 1}/{len(self.stages)} {stage.name}"
        batches = prefetched(self.make_batches(stage), first * stage.accumulation, stage.steps * stage.accumulation)
        finished = stop = False
        with closing(batches), ProgressBar(title, stage.steps, unit="steps") as progress:
            progress.resume(first)
            for step in range(first, stage.steps):
                began_s = time.monotonic()
                losses, grad_norm, num_samples = self._optimize(index, step, batches, trained, optimizer)
                if step == first and rank() == 0:
                    _warn_about_idle_parts(self.model, stage, trained)
                if average is not None:
                    average.update(step)
                finished = step + 1 == stage.steps
                if finished and average is not None:
                    average.adopt()
                samples_per_s = num_samples / (time.monotonic() - began_s)
                row = {
                    "stage": stage.name,
                    "step": step + 1,
                    "loss": losses["loss"],
                    "losses": {name: value for name, value in losses.items() if name != "loss"},
                    "learning_rate": learning_rate_at(stage, step),
                    "grad_norm": grad_norm,
                    "samples_per_s": round(samples_per_s, 3),
                    "wall_s": round(time.monotonic() - self.started_s, 3),
                }
                self._report(row)
                if self.validate is not None and (finished or (step + 1) % self.validate_every == 0):
                    self._run_validation(self.validate, stage, step + 1, None if finished else average)
                progress.update(step + 1, " ".join(f"{name} {value:.4g}" for name, value in losses.items()))
                self.steps += 1
                self.losses[stage.name] = losses["loss"]
                # Read once, for it may arrive at any moment, and on any process.
                stop = any_process(request.signal is not None, self.device)
                if finished or stop or (step + 1) % self.save_every == 0:
                    for log in (self.metrics, self.validations):
                        if log is not None:
                            log.sync()
                    self.checkpoint = self.store.save(
                        position=Position(
                            stage_index=index,
                            stage=stage.name,
                            step=step + 1,
                            finished=finished,
                            wall_s=time.monotonic() - self.started_s,
                        ),
                        recipe=self.recipe,
                        record=self.record,
                        network=self.model.network,
                        optimizer=optimizer,
                        trained=trained,
                        average=average,
                        save_policy=self.save_policy,
                    )
                if stop:
                    break
        return finished, stop

    def _run_validation(self, validate: Validate, stage: TrainStage, step: int, average: MovingAverage | None) -> None:
        """Measure the weights that would be published now; rank 0 does, the others wait."""

        def measure() -> None:
            assert self.validations is not None
            found = validate(stage, step, weights)
            self.validations.append({"stage": stage.name, "step": step, **found})

        with average.applied() if average is not None else nullcontext():
            weights = full_weights(self.model.network)
            from_rank_zero(measure)

    def _report(self, row: dict[str, Any]) -> None:
        """Write a step's row and hand it on, on rank 0."""
        if self.metrics is None:
            return
        self.metrics.append(row)
        if self.log is not None:
            self.log(row)

    def _optimize(
        self,
        index: int,
        step: int,
        batches: Iterator[Batch],
        trained: Mapping[str, nn.Parameter],
        optimizer: torch.optim.AdamW,
    ) -> tuple[dict[str, float], float, int]:
        """One optimiser step: mean losses ("loss" is the total), norm of the gradient before clipping, samples."""
        stage = self.stages[index]
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        episodes: list[int] = []
        failure: str | None = None
        num_samples = 0
        for micro in range(stage.accumulation):
            batch = self._checked(next(batches), stage).to(self.device)
            num_samples += stage.batch_size
            draws = step_draws(self.seed, index, step, micro, stage.batch_size, self.device)
            # Modules that know no draws (dropout) draw from the global generators; those repeat as well.
            global_seed = seeded(*draws.key, "global", rank()).initial_seed()
            torch.default_generator.manual_seed(global_seed)
            if self.device.type == "cuda":
                torch.cuda.manual_seed(global_seed)
            if self.sharded is not None:
                self.sharded.exchange_gradients(micro + 1 == stage.accumulation)
            loss, parts = (self.sharded or self.model.loss)(batch, stage.objective, draws)
            values = {"loss": _scalar(loss, stage)} | {name: float(value.detach()) for name, value in parts.items()}
            episodes += batch.episode_index.tolist()
            if failure is None and not math.isfinite(values["loss"]):
                # The others are on their way into the backward pass, where all have to meet; so is this process.
                failure = f"loss {values['loss']} {values}; {_origin(batch)}"
            (loss / stage.accumulation).backward()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / stage.accumulation
        if any_process(failure is not None, self.device):
            raise self._diverged(next(filter(None, gathered(failure))), stage, step)
        sums = dict(zip(sums, mean_over_processes(list(sums.values()), self.device), strict=True))
        norm = clip_gradients(trained, stage.max_grad_norm)
        if not math.isfinite(norm):
            where = f"the batch came from episodes {sorted({item for own in gathered(episodes) for item in own})}"
            raise self._diverged(f"gradient norm {norm} at a finite loss {sums}; {where}", stage, step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(stage, step)
        optimizer.step()
        return sums, norm, num_samples

    def _checked(self, batch: Batch, stage: TrainStage) -> Batch:
        expected = len(rows_of_this_process(stage.batch_size))
        if len(batch.task) != expected:
            raise ValueError(
                f"stage {stage.name!r}: expected {expected} of {stage.batch_size} windows on each of {world_size()} "
                f"processes, got {len(batch.task)}; make_batches gives parallel.rows_of_this_process(batch_size)"
            )
        return batch

    def _diverged(self, what: str, stage: TrainStage, step: int) -> TrainingDiverged:
        kept = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint else "there is no checkpoint yet"
        return TrainingDiverged(
            f"stage {stage.name!r}, step {step + 1}: expected a finite loss and gradient, got {what}; {kept}. Inspect "
            f"those episodes, or train in a new folder with a lower learning rate than "
            f"{learning_rate_at(stage, step):g} or a longer warm-up"
        )


def _origin(batch: Batch) -> str:
    """Where a batch came from; rows whose own numbers are not finite are named apart."""
    damaged = torch.zeros(len(batch.task), dtype=torch.bool)
    for tensor in (batch.state, batch.actions, batch.future_state, batch.value_targets):
        if tensor is not None:
            damaged |= ~tensor.isfinite().flatten(1).all(dim=1).cpu()
    named = sorted(set(batch.episode_index.cpu()[damaged].tolist()))
    data = f", of which {named} hold numbers that are not finite" if named else ""
    return f"the batch came from episodes {sorted(set(batch.episode_index.tolist()))}{data}"


def step_draws(
    seed: int, stage_index: int, step: int, micro: int, batch_size: int, device: torch.device | str = "cpu"
) -> TrainingDraws:
    """The random numbers of one loss: a pure function of where training is, whatever the device and the processes.

    Args:
        seed: of the run.
        stage_index: which stage, from 0.
        step: optimiser steps of the stage completed before.
        micro: which batch of the step.
        batch_size: rows of the global batch; this process draws for its own.
        device: where the numbers are wanted.
    """
    key = (seed, stage_index, step, micro)
    return TrainingDraws(key=key, rows=rows_of_this_process(batch_size), num_rows=batch_size, device=device)


def _scalar(loss: Tensor, stage: TrainStage) -> float:
    if loss.ndim != 0:
        raise ValueError(f"stage {stage.name!r}: expected a scalar loss, got shape {list(loss.shape)}; average it")
    if not loss.requires_grad:
        raise ValueError(
            f"stage {stage.name!r}: the loss does not depend on the trained parts {list(stage.train)}; choose parts "
            f"that the objective {stage.objective!r} reaches"
        )
    return float(loss.detach())


def _warn_about_idle_parts(model: Trainable, stage: TrainStage, trained: Mapping[str, nn.Parameter]) -> None:
    for part in stage.train:
        names = model.parts()[part]
        if names and all(trained[name].grad is None for name in names):
            logger.warning(
                "stage %r trains the part %r, but its loss does not reach it: it stays as it is", stage.name, part
            )


@contextmanager
def _training_mode(network: nn.Module) -> Iterator[None]:
    before = {module: module.training for module in network.modules()}
    network.train()
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
