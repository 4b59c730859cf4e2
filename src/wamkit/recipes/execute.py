"""Carry out a `Run`: dataset, statistics, model and trainer put together, and a policy folder at the end."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wamkit.atomic import complete_folder
from wamkit.checkpoint import read_policy
from wamkit.data.actions import ActionTransform
from wamkit.data.batches import StageBatches
from wamkit.data.encode import EncodingReport, encode_dataset
from wamkit.data.encoded import MANIFEST, CachePurpose, EncodedDataset, read_manifest
from wamkit.data.loader import WindowLoader
from wamkit.data.source import VALUE, EpisodeSource
from wamkit.data.transforms import Normalizer, ValueTransform
from wamkit.data.vectors import Transforms
from wamkit.data.windows import WindowConfig
from wamkit.device import choose_device
from wamkit.draws import seeded
from wamkit.models import family_module
from wamkit.parallel import from_rank_zero, local_device, process_group, rank, rows_of_this_process
from wamkit.policy import Policy, read_settings
from wamkit.progress import ProgressBar
from wamkit.recipes.check import check_run, require_own_folder
from wamkit.recipes.codecs import codecs_of_cache, run_codecs
from wamkit.recipes.datasets import TrainingData, data_record, open_data, run_statistics
from wamkit.recipes.run import Run
from wamkit.spec import RobotSpec
from wamkit.training.prefetch import BatchSource, drawing_processes
from wamkit.training.resuming import require_same_run
from wamkit.training.sharding import full_weights
from wamkit.training.stage import TrainStage, plain
from wamkit.training.state import has_checkpoint
from wamkit.training.trainer import TrainReport, Validate, train

logger = logging.getLogger(__name__)


def execute(run: Run, *, resume: bool = True) -> TrainReport:
    """Train what a recipe describes; `run.output / "policy"` holds the policy when all stages are done.

    Calling it again continues an interrupted run, and returns at once when all is done.

    Under a launcher all processes train one model. Each reads the dataset and decodes its frames by itself, and builds
    the whole network before it keeps its part; rank 0 alone computes statistics, fits codecs and writes policies.

    Args:
        run: the recipe.
        resume: continue from the newest checkpoint in the output folder; `False` insists on a fresh folder.

    Raises:
        ValueError: settings that cannot be carried out, dataset and model do not fit each other, the value column is
            missing, or the recipe changed since the checkpoint in the output folder.
        FileNotFoundError: no dataset.
        FileExistsError: the output folder holds something else than a run.
        RuntimeError: `WORLD_SIZE` and the process group disagree.
    """
    if not run.data.all_roots or run.output == Path():
        raise ValueError("a run needs a dataset and an output folder: set data.root and output (--data.root, --output)")
    check_run(run)
    device = choose_device(run.device)
    with process_group(device, alone=run.precision != "fp32"), _rank_zero_speaks():
        return _execute(run, local_device(device), resume)


def _execute(run: Run, device: torch.device, resume: bool) -> TrainReport:
    data = open_data(run)
    from_rank_zero(
        lambda: require_own_folder(run.output, setting="output", mark="checkpoints", roots=run.data.all_roots)
    )
    for stage in run.stages:
        rows_of_this_process(stage.batch_size)
    robot = _require_fit(run, data)
    initial, record = _initial(run)
    transforms, given = _transforms(run, data, robot)
    if initial and rank() == 0:
        _compare_statistics(run.initial.path, transforms)
    recipe = {
        "model": plain(run.model),
        "data": data_record(run.data),
        "execution_horizon": run.execution_horizon,
        **record,
        **data.record(),
        **given,
        **({"validation": plain(run.validation)} if run.validation.holds_out else {}),
    }
    told: dict[str, Any] = {"seed": run.seed, "recipe": recipe, "data_fingerprint": data.fingerprint}
    told |= {"precision": run.precision, "resume": resume}
    from_rank_zero(lambda: require_same_run(run.output, run.stages, **told))  # before all frames are read
    encoded = None
    if run.data.cache != Path():
        episodes = [entry.index for entry in data.wanted.episodes]
        encoded = EncodedDataset(run.data.cache, _purpose(run, data, robot), episodes=episodes)
    base = _loader(run, data.training, robot, transforms, encoded)
    family = family_module(run.model.family).FAMILY
    codecs = from_rank_zero(
        lambda: (
            run_codecs(run, lambda: base, data.fingerprint, data.held_out, run.output)
            if encoded is None
            else codecs_of_cache(run, encoded)
        )
    )
    model = family.create(run.model, codecs, seed=run.seed, **initial)

    def make_batches(stage: TrainStage) -> BatchSource:
        # stages draw other windows: the seed of each follows from its name
        seed = int(torch.randint(2**31, (1,), generator=seeded(run.seed, stage.name)))
        loader = base.reseeded(stage.batch_size, seed)
        return StageBatches(
            loader=loader,
            needs_future=stage.needs_future,
            color_jitter=run.data.color_jitter,
            device=device,
            num_processes=drawing_processes(loader, run.data.workers),
        )

    validate = None
    if run.validation.every:
        validate = _validation(run, model, _loader(run, data.validation, robot, transforms, encoded), device)
    spec = run.model.spec_for(
        robot,
        execution_horizon=run.execution_horizon,
        normalization=run.data.normalization,
        preprocess=run.data.preprocess,
        tasks=tuple(sorted({episode.task for episode in data.chosen.episodes})),
    )
    policy = Policy(model, spec, transforms)

    def save_policy(path: Path, training: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        policy.save(path, config=run.model.to_dict(), training=training, weights=weights)

    (model if encoded is None else model.network).to(device)  # a cache stands for the codecs
    report = train(
        model,
        run.stages,
        make_batches,
        folder=run.output,
        save_every=run.save_every,
        keep_policy_every=run.keep_policy_every,
        save_policy=save_policy,
        validate=validate,
        validate_every=run.validation.every,
        device=device,
        activation_checkpointing=run.activation_checkpointing,
        **told,
    )
    done = run.output / "policy"
    if report.stopped_by is None and (report.steps or not from_rank_zero(complete_folder(done).is_dir)):
        # a policy that is there was made by an earlier call, and its record says by which code
        weights = full_weights(model.network)
        from_rank_zero(lambda: save_policy(done, report.training, weights))
    return report


@contextlib.contextmanager
def _rank_zero_speaks() -> Iterator[None]:
    """Keep the other processes' progress, which would repeat rank 0's, from the terminal; not their warnings."""
    if rank() == 0:
        yield
        return
    ours = logging.getLogger("wamkit")
    level = ours.level
    ours.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        ours.setLevel(level)


def _initial(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a family needs to start from a run's initial weights, and what is recorded of them.

    An interrupted run does not read them again: its checkpoint holds every weight.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: an unknown profile, or by their headers they do not fit the model.
    """
    initial = run.initial
    if initial.path == Path():
        return {}, {}
    name = initial.path.resolve().name
    record = {"initial": {"name": name, "profile": initial.profile, "may_resize": list(initial.may_resize)}}
    if from_rank_zero(lambda: has_checkpoint(run.output)):
        return {}, record
    kind = {"profile": initial.profile, "may_resize": initial.may_resize}
    family_module(run.model.family).FAMILY.check_initial(run.model, initial.path, **kind)
    return {"initial": initial.path, **kind}, record


def _windows(run: Run) -> WindowConfig:
    return WindowConfig(
        context=run.model.num_context,
        chunk=run.model.num_future,
        action_horizon=run.model.action_horizon,
        sample_n_frames=run.data.sample_n_frames,
        pick=run.data.pick,
        spacing=(run.model.context_stride or run.execution_horizon) if run.data.pick == "spaced" else 1,
        action_offset=run.data.action_offset,
        first_row=run.data.first_row,
        future_stride=run.model.future_stride,
        whole=run.model.whole_windows,
    )


def _transforms(run: Run, data: TrainingData, robot: RobotSpec) -> tuple[Transforms, dict[str, Any]]:
    """Statistics made into transforms, and what is recorded of statistics that were given."""
    statistics, given = from_rank_zero(lambda: run_statistics(run.data, data))  # computing them may write a file
    value = ValueTransform.from_statistics(statistics[VALUE]) if VALUE in statistics else None
    width = run.model.value_channels
    if width and value is None:
        raise ValueError(
            f"{data.name} has no value column, but the model has a value expert; write one with "
            f"`wamkit data values {data.datasets[0].root}`"
        )
    if value is not None and width and value.width != width:
        raise ValueError(
            f"expected a value column of {width} channels, the model's, got {value.width} in {data.name}; "
            f"set the model's value channels to {value.width}, or write the column with other settings"
        )
    kind = run.data.normalization
    transforms = Transforms(
        state=Normalizer.from_statistics(kind, statistics["state"]),
        action=ActionTransform.from_statistics(
            run.data.action_type, kind, statistics, robot, targets=run.data.action_targets
        ),
        value=value if width else None,
    )
    return transforms, given


def _compare_statistics(path: Path, transforms: Transforms) -> None:
    """Say when weights that come from a policy were trained behind other normalisation than this run's."""
    folder = complete_folder((path.parent if path.is_file() else path).absolute())
    if not (folder / "spec.json").is_file():
        return
    _, theirs = read_settings(read_policy(folder))
    differing = [name for name in ("state", "action") if getattr(theirs, name) != getattr(transforms, name)]
    if differing:
        logger.warning(
            "the initial weights were trained behind other statistics of %s than this run normalizes with, so that "
            "they see other numbers than they know; --data.statistics %s keeps theirs",
            " and ".join(differing),
            folder,
        )


def _require_fit(run: Run, data: TrainingData) -> RobotSpec:
    """The dataset's robot, when its cameras and widths are the model's."""
    robot = data.robot
    if robot is None:
        raise ValueError(
            f"{data.name} says nothing of its robot; describe it with `wamkit data describe {data.datasets[0].root}`"
        )
    if run.data.cameras:
        missing = [name for name in run.data.cameras if name not in robot.camera_names]
        if missing:
            raise ValueError(
                f"expected the cameras {', '.join(run.data.cameras)} in {data.name}, it has "
                f"{', '.join(robot.camera_names)}; choose among those with --data.cameras, or record it with others"
            )
        robot = robot.with_cameras(run.data.cameras)
    model = run.model
    size = (model.image_size, model.image_size)
    offered = {
        "cameras": len(robot.cameras),
        "image sizes": sorted({(camera.height, camera.width) for camera in robot.cameras}),
        "action channels": len(robot.action),
        "state channels": len(robot.state),
    }
    wanted = {
        "cameras": model.num_views,
        "image sizes": [size] if run.data.preprocess == "exact" else offered["image sizes"],
        "action channels": model.action_dim,
        "state channels": model.state_dim,
    }
    wrong = [f"{key}: model {wanted[key]}, dataset {offered[key]}" for key in wanted if wanted[key] != offered[key]]
    if wrong:
        listed = "\n  - ".join(wrong)
        raise ValueError(
            f"model {model.name!r} and dataset {data.name} do not fit:\n  - {listed}\n"
            "Change the model's settings (--model.…), or record the dataset with other cameras or sizes; images of "
            "another size can be made to fit with data.preprocess 'resize' or 'center_crop_resize'."
        )
    return robot


def encode(run: Run) -> EncodingReport:
    """Make the cache `run.data.cache` for a run, or complete it; nothing is trained.

    Under a launcher each process encodes some of the episodes.

    Raises:
        ValueError: dataset and model do not fit each other, pictures would be changed at random, or the cache was
            made for something else.
        FileNotFoundError: no dataset.
        FileExistsError: the folder holds something else than a cache.
        OSError: not enough room.
    """
    if not run.data.all_roots or run.data.cache == Path():
        raise ValueError(
            "encoding needs a dataset and a folder: set data.root and data.cache (--data.root, --data.cache)"
        )
    check_run(run)
    device = choose_device(run.device)
    with process_group(device), _rank_zero_speaks():
        data, device = open_data(run), local_device(device)
        from_rank_zero(
            lambda: require_own_folder(run.data.cache, setting="data.cache", mark=MANIFEST, roots=run.data.all_roots)
        )
        robot = _require_fit(run, data)
        purpose = _purpose(run, data, robot)
        found = read_manifest(run.data.cache)
        if found is not None:
            purpose.require(found["purpose"], run.data.cache)

        transforms, _ = _transforms(run, data, robot)

        def make_loader() -> WindowLoader:
            return _loader(run, data.training, robot, transforms)

        content = data.content_fingerprint  # a cache serves every choice of its datasets' episodes
        codecs = from_rank_zero(lambda: run_codecs(run, make_loader, content, data.held_out, run.data.cache))
        with ProgressBar(f"encoding {data.name}", unit="episodes") as bar:
            return encode_dataset(
                data.whole,
                run.data.cache,
                purpose,
                _windows(run),
                encoder=family_module(run.model.family).FAMILY.cache_encoder(run.model, codecs, device),
                episodes=[entry.index for entry in data.wanted.episodes],
                device=device,
                progress=bar.show,
            )


def _loader(
    run: Run, dataset: EpisodeSource, robot: RobotSpec, transforms: Transforms, encoded: EncodedDataset | None = None
) -> WindowLoader:
    with ProgressBar("reading the frames", unit="episodes") as bar:
        return WindowLoader(
            dataset,
            _windows(run),
            action=transforms.action,
            state=transforms.state,
            value=transforms.value,
            batch_size=run.stages[0].batch_size,
            seed=run.seed,
            cameras=robot.camera_names,
            robot=robot,
            image_size=(run.model.image_size, run.model.image_size),
            preprocess=run.data.preprocess,
            random_crop=run.data.random_crop,
            encoded=encoded,
            progress=bar.show,
        )


def _validation(run: Run, model: Any, loader: WindowLoader, device: torch.device) -> Validate:
    """Measures weights on windows of the held-out episodes, the same every time.

    What is measured are the streams trained so far; statistics that normalize are those of the whole dataset.
    """
    batch = loader.reseeded(run.validation.num_windows, 0).batch(0)
    names = [stage.name for stage in run.stages]

    def validate(stage: TrainStage, step: int, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        done = run.stages[: names.index(stage.name) + 1]
        own = model.with_weights(weights)
        own.network.to(device)
        streams = {part for earlier in done for part in earlier.train}
        errors = own.validate(batch, streams=streams, num_steps=run.validation.num_steps)
        return {"num_windows": run.validation.num_windows, **errors}

    return validate


def _purpose(run: Run, data: TrainingData, robot: RobotSpec) -> CachePurpose:
    """What a run's cache has to have been made for.

    Raises:
        ValueError: the run changes pictures at random, which a cache cannot hold.
    """
    changes = {"data.color_jitter": run.data.color_jitter.is_on, "data.random_crop": run.data.random_crop}
    if any(changes.values()):
        raise ValueError(
            f"a cache holds latents of pictures as they are, but {[key for key in changes if changes[key]]} would "
            "change them at every step; switch that off, or leave data.cache out"
        )
    return CachePurpose.of(
        dataset=data.content_fingerprint,
        cameras=robot.camera_names,
        image_size=(run.model.image_size, run.model.image_size),
        preprocess=run.data.preprocess,
        windows=_windows(run),
        codec=run.model.codec_record(),
        dtype=run.data.cache_dtype,
    )
