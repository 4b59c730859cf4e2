"""Policy folders: everything a policy needs to act, in one folder that is never half written and never unpickled.

    model.safetensors   weights (shards with an index when large)
    config.json         the family's configuration, with its name under "type"
    spec.json           what the policy needs and gives (`PolicySpec`)
    statistics.json     normalisation of state and actions, formula and epsilon named
    training.json       recipe, commit, versions, seeds, data fingerprint; which codecs the weights were trained behind
    README.md           model card
    codecs/             what the codecs need to load again
    results.json        optional: what the policy scored; no part of what it does

A training checkpoint is such a folder with the state for resuming beside it in `training_state/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wamkit.atomic import atomic_folder, complete_folder, copy_files
from wamkit.model_card import model_card
from wamkit.spec import PolicySpec
from wamkit.typed import COPY_AGAIN, blame, read_value
from wamkit.weight_files import StoredWeights, check_weights, read_json, read_weights, write_json, write_weights

TRAINING_STATE = "training_state"
_JSON_FILES = ("config.json", "spec.json", "statistics.json", "training.json")
_NO_PART_OF_THE_POLICY = (("README.md",), ("results.json",))
_LISTED = 8
_CODECS = "codecs_sha256"


@dataclass(frozen=True, kw_only=True)
class PolicyFiles:
    """A policy folder that was read and checked; the weights are read when asked for.

    Args:
        folder: where the files lie.
        family: model family, for instance `wav`.
        config: the family's configuration, without "type".
        spec: what the policy needs and gives.
        statistics: normalisation of state and actions.
        training: how it was trained.
    """

    folder: Path
    family: str
    config: dict[str, Any]
    spec: PolicySpec
    statistics: dict[str, Any]
    training: dict[str, Any]

    @property
    def codecs(self) -> Path:
        """Folder of the codecs' files."""
        return self.folder / "codecs"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the folder's files, see `fingerprint_folder`; computed once, when asked for."""
        return fingerprint_folder(self.folder)

    def check_codecs(self) -> None:
        """Refuse codecs other than those that the weights were trained behind.

        Others could fit in every shape, and the network would read noise. Folders of older versions, which do not say
        which they were, pass.

        Raises:
            ValueError: the files of `codecs/` are not those that were written, or damaged.
        """
        for file in sorted(self.codecs.rglob("*.safetensors")):
            check_weights(file)
        written = self.training.get(_CODECS)
        if written is None:
            return
        found = fingerprint_folder(self.codecs)
        if found != written:
            raise ValueError(
                f"{self.codecs}: expected the codecs that the weights were trained behind ({written!s:.12}, "
                f"{self.folder / 'training.json'}), got others ({found:.12}), which would show the network noise; "
                f"{COPY_AGAIN}"
            )

    def load_weights(self) -> dict[str, Tensor]:
        """The weights on the CPU, in the type they were saved with.

        Raises:
            ValueError: a weight file is damaged.
        """
        return read_weights(self.folder)

    def open_weights(self) -> StoredWeights:
        """The weights in the type they were saved with, each read when asked for.

        Raises:
            ValueError: a weight file is damaged.
        """
        return StoredWeights(self.folder)


def write_policy(
    path: Path | str,
    *,
    family: str,
    network: nn.Module | Mapping[str, Tensor],
    config: Mapping[str, Any],
    spec: PolicySpec,
    statistics: Mapping[str, Any],
    training: Mapping[str, Any],
    write_codecs: Callable[[Path], None] | None = None,
    dtype: torch.dtype | None = None,
    card: Mapping[str, str] | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Write a policy folder; a kill at any moment leaves the folder that was there, or the new one.

    Args:
        path: destination; a folder there is replaced as a whole.
        family: model family; equals `spec.family`.
        network: the network, or its state dict.
        config: the family's configuration, JSON-ready; "type" is added.
        spec: what the policy needs and gives.
        statistics: normalisation of state and actions, JSON-ready.
        training: recipe, commit, versions, seeds, data fingerprint, JSON-ready; the codecs' sha256 is added.
        write_codecs: fills the folder `codecs/` it is given, or `None` when the codecs need no files.
        dtype: type of the saved floating-point weights; `None` keeps theirs.
        card: extra sections of the model card, title -> Markdown text.
        max_shard_size: largest weight file, for instance `5GB`; larger networks are saved in shards with an index.

    Returns:
        `path`.

    Raises:
        ValueError: `family` and `spec.family` differ, or a value has no place in JSON.
        DiskFull: no room; what was at `path` is untouched.
    """
    path = Path(path)
    if family != spec.family or config.get("type", family) != family:
        raise ValueError(
            f"expected one family name, got family={family!r}, spec.family={spec.family!r} and "
            f"config['type']={config.get('type', family)!r}; write the policy with the spec of its own family"
        )
    weights = network.state_dict() if isinstance(network, nn.Module) else network
    with atomic_folder(path) as folder:
        write_weights(folder, weights, dtype=dtype, max_shard_size=max_shard_size)
        write_json(folder / "config.json", {"type": family, **config})
        write_json(folder / "spec.json", spec.to_dict())
        write_json(folder / "statistics.json", statistics)
        training = {key: value for key, value in training.items() if key != _CODECS}
        if write_codecs is not None:
            (folder / "codecs").mkdir()
            write_codecs(folder / "codecs")
            training[_CODECS] = fingerprint_folder(folder / "codecs")
        write_json(folder / "training.json", training)
        num_parameters = sum(tensor.numel() for tensor in weights.values())
        text = model_card(spec=spec, training=training, num_parameters=num_parameters, sections=card or {})
        (folder / "README.md").write_text(text, encoding="utf-8")
    return path


def read_policy(path: Path | str) -> PolicyFiles:
    """Read a policy folder and check that it is whole; nothing in it is executed or unpickled.

    Args:
        path: a policy folder, or a training checkpoint, which is one.

    Raises:
        FileNotFoundError: there is no such folder, or a file of it is missing; the message lists what is there.
        ValueError: a file is damaged or does not fit the others; the message names the file and what to do.
    """
    folder = complete_folder(path)
    if not folder.exists():
        beside = sorted(item.name for item in folder.parent.glob("*/") if (item / "config.json").is_file())[:_LISTED]
        hint = f"; policy folders beside it: {beside}" if beside else ""
        raise FileNotFoundError(f"expected a policy folder at {path}, found nothing{hint}; check the path")
    if not folder.is_dir():
        raise NotADirectoryError(f"expected a policy folder at {path}, found a file; give the folder that holds it")
    missing = [name for name in _JSON_FILES if not (folder / name).is_file()]
    if missing:
        there = sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))[:_LISTED]
        raise FileNotFoundError(
            f"{path} is not a complete policy folder: {', '.join(missing)} not found; it holds {there}. Give a folder "
            "written by training, for instance one under checkpoints/, or copy the whole folder again"
        )
    config, spec, statistics, training = (read_json(folder / name) for name in _JSON_FILES)
    family = config.pop("type", None)
    if not isinstance(family, str):
        raise ValueError(
            f"{folder / 'config.json'}: expected the model family under 'type', got {family!r}; {COPY_AGAIN}"
        )
    with blame(folder / "spec.json", COPY_AGAIN):
        parsed = PolicySpec.from_dict(spec)
    with blame(folder / "training.json", COPY_AGAIN):
        read_value(dict[str, Any] | None, training.get("recipe"), "recipe")
        read_value(dict[str, Any], training.get("versions", {}), "versions")
    if parsed.family != family:
        raise ValueError(
            f"{path}: config.json says family {family!r}, spec.json says {parsed.family!r}; the folder mixes two "
            "policies, copy it again from one source"
        )
    check_weights(folder)
    return PolicyFiles(
        folder=folder, family=family, config=config, spec=parsed, statistics=statistics, training=training
    )


def export_policy(
    source: Path | str,
    output: Path | str,
    *,
    dtype: torch.dtype | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Copy a policy, without the state for resuming, and with its weights in another type if wanted.

    Args:
        source: a policy folder or a training checkpoint.
        output: folder to make.
        dtype: type of the written floating-point weights, for instance `torch.bfloat16`; `None` keeps theirs.
        record: what else training.json is to say, JSON-ready.

    Returns:
        `output`.

    Raises:
        FileExistsError: there is something at `output`.
        FileNotFoundError, ValueError: as `read_policy`.
    """
    files, output = read_policy(source), Path(output)
    if output.exists():
        raise FileExistsError(f"expected a new folder for the policy, {output} is there; remove it or choose another")

    files.check_codecs()

    def copy_codecs(folder: Path) -> None:
        copy_files(files.codecs, folder)

    return write_policy(
        output,
        family=files.family,
        network=files.load_weights(),
        config=files.config,
        spec=files.spec,
        statistics=files.statistics,
        training={
            **files.training,
            "exported_from": files.fingerprint,
            "exported_as": str(dtype or "as trained"),
            **(record or {}),
        },
        write_codecs=copy_codecs if files.codecs.is_dir() else None,
        dtype=dtype,
    )


def fingerprint_folder(folder: Path | str) -> str:
    """sha256 over the names and bytes of a policy folder's files.

    The model card, results, hidden files (which downloaders add) and the state for resuming do not change what a policy
    does and are left out.

    Args:
        folder: a policy folder.

    Returns:
        64 hexadecimal digits.
    """
    folder = Path(folder)
    total = hashlib.sha256()
    for file in sorted(item for item in folder.rglob("*") if item.is_file()):
        parts = file.relative_to(folder).parts
        if parts in _NO_PART_OF_THE_POLICY or parts[0] == TRAINING_STATE or any(part.startswith(".") for part in parts):
            continue
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{'/'.join(parts)}\0{digest}\n".encode())
    return total.hexdigest()
