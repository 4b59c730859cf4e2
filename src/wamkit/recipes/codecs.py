"""The codecs of a run: those of the policy it starts from, those of its cache, or fitted to its dataset."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from wamkit.atomic import atomic_folder, complete_folder
from wamkit.checkpoint import read_policy
from wamkit.data.encoded import EncodedDataset, codecs_digest
from wamkit.data.loader import WindowLoader
from wamkit.draws import seeded
from wamkit.models import family_module
from wamkit.recipes.check import CODECS, MADE_FOR
from wamkit.recipes.run import Run
from wamkit.training.stage import plain
from wamkit.weight_files import read_json, write_json

logger = logging.getLogger(__name__)

_INITIAL = "initial_codecs"


def initial_codecs(run: Run) -> Path | None:
    """The codecs of the policy that a run starts from: weights that were trained behind them know no others.

    `None` for a run from fresh weights, from weights without codecs beside them, and with pretrained codecs, which the
    recipe names.
    """
    path = run.initial.path
    if path == Path() or not run.model.codec_batches:
        return None
    folder = complete_folder(path)
    codecs = (folder.parent if folder.is_file() else folder) / CODECS
    return codecs if codecs.is_dir() else None


def codecs_of_cache(run: Run, encoded: EncodedDataset) -> Path:
    """The cache's codecs, copied into the run's folder.

    Raises:
        ValueError: the run was begun with others, or starts from a policy with others.
    """
    folder, initial = run.output / CODECS, initial_codecs(run)
    digest = codecs_digest(encoded.codecs)
    if initial is not None and codecs_digest(initial) != digest:
        raise ValueError(
            f"the cache {encoded.folder} was made with other codecs than {initial}, which the initial weights were "
            f"trained behind; encode the dataset again, into another folder, with --initial.path {run.initial.path}"
        )
    if not complete_folder(folder).is_dir():
        with atomic_folder(folder) as partial:
            shutil.copytree(encoded.codecs, partial, dirs_exist_ok=True)
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

    Args:
        run: the recipe.
        make_loader: gives the windows whose first ones codecs are fitted to.
        fingerprint: of those windows' dataset.
        held_out: episodes that are not among them.
        parent: the run's folder, or its cache's.

    Raises:
        ValueError: the folder's codecs were made for other settings, another dataset or another initial policy.
    """
    folder, initial = parent / CODECS, initial_codecs(run)
    made_for = {"model": plain(run.model), "seed": run.seed, "data_fingerprint": fingerprint}
    if run.data.preprocess != "exact" or run.data.random_crop:
        made_for |= {"preprocess": run.data.preprocess, "random_crop": run.data.random_crop}
    if run.validation.holds_out:
        made_for["held_out"] = list(held_out)
    if initial is not None:
        made_for[_INITIAL] = codecs_digest(initial)
    if complete_folder(folder).is_dir():
        found = read_json(complete_folder(folder) / MADE_FOR)
        if run.initial.path != Path() and not run.initial.path.exists():
            made_for |= {key: found[key] for key in (_INITIAL,) if key in found}  # gone, but the run has all it needs
        if found != made_for:
            differing = sorted(key for key in found | made_for if found.get(key) != made_for.get(key))
            raise ValueError(
                f"{folder} was made for another dataset, seed or model: {', '.join(differing)} differ (the fingerprint "
                f"covers which episodes and weights are chosen); use another folder, or remove {parent} to start afresh"
            )
        return folder
    with atomic_folder(folder) as partial:
        if initial is None:
            _fit(run, make_loader, partial)
        else:
            logger.info("codecs are those of %s, which the initial weights were trained behind", initial.parent)
            if (initial.parent / "spec.json").is_file():
                read_policy(initial.parent).check_codecs()
            shutil.copytree(initial, partial, dirs_exist_ok=True)
        write_json(partial / MADE_FOR, made_for)
    return folder


def _fit(run: Run, make_loader: Callable[[], WindowLoader], folder: Path) -> None:
    if run.initial.path != Path() and run.model.codec_batches:
        logger.warning(
            "no codecs lie beside the initial weights %s: new ones are fitted, and the weights know others",
            run.initial.path,
        )
    batches = []
    if run.model.codec_batches:  # others are pretrained
        loader = make_loader()
        batches = [loader.batch(step) for step in range(run.model.codec_batches)]
    family = family_module(run.model.family).FAMILY
    family.fit_codecs(run.model, batches, seeded(run.seed, "codecs"), folder)
