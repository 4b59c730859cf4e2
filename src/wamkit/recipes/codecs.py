"""The codecs of a run: those of the policy it starts from, those of its cache, or fitted to its dataset."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from wamkit.atomic import atomic_folder, complete_folder, copy_files
from wamkit.checkpoint import read_policy
from wamkit.data.encoded import EncodedDataset, codecs_digest
from wamkit.data.loader import WindowLoader
from wamkit.draws import seeded
from wamkit.model_config import ModelConfig
from wamkit.models import family_module
from wamkit.recipes.check import CODECS, MADE_FOR
from wamkit.recipes.run import Run
from wamkit.training.stage import plain
from wamkit.training.state import has_checkpoint
from wamkit.weight_files import read_json, write_json

logger = logging.getLogger(__name__)

_INITIAL = "initial_codecs"


def initial_codecs(run: Run) -> Path | None:
    """The codecs of the policy that a run starts from: weights that were trained behind them know no others.

    `None` for a run from fresh weights, from weights that are no policy's, with pretrained codecs, which the recipe
    names, and where the recipe's differ and modules may have other shapes (`initial.may_resize`).

    Raises:
        ValueError: the policy has lost its codecs, has others than it was trained with, or the recipe describes others.
    """
    if run.initial.path == Path():
        return None
    path = complete_folder(run.initial.path.absolute())
    folder = path.parent if path.is_file() else path
    if not (folder / "spec.json").exists():
        return None
    files = read_policy(folder)
    files.check_codecs()
    if files.family != run.model.family:
        return None  # what the weights are is told where they are read
    config = family_module(files.family).FAMILY.read_config(files.config)
    if not run.model.codec_batches and not config.codec_batches:
        return None
    if not files.codecs.is_dir():
        raise ValueError(
            f"expected the codecs that the weights of {files.folder} were trained behind in {files.codecs}, found "
            "nothing; copy the whole folder again, or its model.safetensors alone to fit new codecs before them"
        )
    theirs, ours = _codec_settings(config), _codec_settings(run.model)
    differing = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
    if not differing:
        return files.codecs
    if run.initial.may_resize:
        return None
    told = ", ".join(f"{key} {theirs.get(key)!r}, not {ours.get(key)!r}" for key in differing)
    raise ValueError(
        f"the codecs of the policy {files.folder}, which its weights were trained behind, have {told}; set model.codec "
        "alike, or start from other weights"
    )


def _codec_settings(config: ModelConfig) -> dict[str, object]:
    return {**config.codec_settings(), "are pretrained": not config.codec_batches}


def codecs_of_cache(run: Run, encoded: EncodedDataset) -> Path:
    """The cache's codecs, copied into the run's folder.

    Raises:
        ValueError: the run was begun with others, or starts from a policy with others.
    """
    folder = run.output / CODECS
    initial = None if has_checkpoint(run.output) else initial_codecs(run)
    digest = codecs_digest(encoded.codecs)
    if initial is not None and codecs_digest(initial) != digest:
        raise ValueError(
            f"the cache {encoded.folder} was made with other codecs than {initial}, which the initial weights were "
            f"trained behind; encode the dataset again, into another folder, with --initial.path {run.initial.path}"
        )
    if not complete_folder(folder).is_dir():
        with atomic_folder(folder) as partial:
            copy_files(encoded.codecs, partial)
    elif codecs_digest(complete_folder(folder)) != digest:
        raise ValueError(
            f"{folder} holds other codecs than the cache {encoded.folder}; use another output folder, or the cache "
            "that this run was begun with"
        )
    return folder


def run_codecs(
    run: Run, make_loader: Callable[[], WindowLoader], fingerprint: str, held_out: Sequence[int], parent: Path
) -> Path:
    """The run's codecs in `parent`: taken over from the initial policy or fitted once, then read back.

    A run with a checkpoint has all it needs, and so has a cache with codecs: the initial policy may be gone by then.

    Args:
        run: the recipe.
        make_loader: gives the windows whose first ones codecs are fitted to.
        fingerprint: of those windows' dataset.
        held_out: episodes that are not among them.
        parent: the run's folder, or its cache's.

    Raises:
        FileNotFoundError: there are neither codecs nor initial weights.
        ValueError: the folder's codecs were made for other settings, another dataset or another initial policy.
    """
    folder = parent / CODECS
    made_for = {"model": plain(run.model), "seed": run.seed, "data_fingerprint": fingerprint}
    if run.data.preprocess != "exact" or run.data.random_crop:
        made_for |= {"preprocess": run.data.preprocess, "random_crop": run.data.random_crop}
    if run.validation.holds_out:
        made_for["held_out"] = list(held_out)
    if complete_folder(folder).is_dir():
        found = read_json(complete_folder(folder) / MADE_FOR)
        origin = found.pop(_INITIAL, None)
        if found != made_for:
            differing = sorted(key for key in found | made_for if found.get(key) != made_for.get(key))
            raise ValueError(
                f"{folder} was made for another dataset, seed or model: {', '.join(differing)} differ (the fingerprint "
                f"covers which episodes and weights are chosen); use another folder, or remove {parent} to start afresh"
            )
        is_cache = parent != run.output
        if is_cache or not has_checkpoint(run.output):
            _require_origin(run, folder, origin, is_cache=is_cache)
        return folder
    if run.initial.path != Path() and run.model.codec_batches and not run.initial.path.exists():
        raise FileNotFoundError(
            f"expected the initial weights' policy at {run.initial.path}, found nothing; correct initial.path"
        )
    initial = initial_codecs(run)
    with atomic_folder(folder) as partial:
        if initial is None:
            _fit(run, make_loader, partial)
        else:
            logger.info("codecs are those of %s, which the initial weights were trained behind", initial.parent)
            copy_files(initial, partial)
            made_for[_INITIAL] = codecs_digest(initial)
        write_json(partial / MADE_FOR, made_for)
    return folder


def _require_origin(run: Run, folder: Path, origin: str | None, *, is_cache: bool) -> None:
    """Refuse codecs of another policy than the run starts from, or fitted ones in place of a policy's.

    Raises:
        ValueError: saying whose they are.
    """
    initial = initial_codecs(run)
    if origin == (None if initial is None else codecs_digest(initial)) or (is_cache and initial is None):
        return
    held = "were fitted to the dataset" if origin is None else "are those of a policy that a run was to start from"
    asked = "fitted ones are asked for now" if initial is None else f"those of {initial.parent} are asked for now"
    raise ValueError(
        f"the codecs in {folder} {held}, {asked}; start from the same weights as before (initial.path), use another "
        f"folder, or remove {folder.parent} to start afresh"
    )


def _fit(run: Run, make_loader: Callable[[], WindowLoader], folder: Path) -> None:
    if run.initial.path != Path() and run.model.codec_batches:
        logger.warning(
            "the initial weights %s bring no codecs with them: new ones are fitted, and the weights know others",
            run.initial.path,
        )
    batches = []
    if run.model.codec_batches:  # others are pretrained
        loader = make_loader()
        batches = [loader.batch(step) for step in range(run.model.codec_batches)]
    family = family_module(run.model.family).FAMILY
    family.fit_codecs(run.model, batches, seeded(run.seed, "codecs"), folder)
