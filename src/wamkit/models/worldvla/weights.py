"""Published weights into a WorldVLA network and back: Chameleon in the standard library's layout, WorldVLA's own.

Both have the names of our network. Older files keep one gain and bias of the query and key norms per *part* of a
model-parallel network (one row of 128 for the 7 B model) where the standard classes have one per head; each row then
stands for `num_heads / parts` heads. Tensors of the image tokeniser in the same files (`model.vqmodel.*`) are left out.

Source: WorldVLA (arXiv 2506.21539), its released checkpoints; section 5 of the specification.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from wamkit.atomic import atomic_folder
from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.models.worldvla.network import WorldVLATransformer, empty_network, initial_values, part_of
from wamkit.weight_files import StoredWeights, write_json, write_weights
from wamkit.weight_findings import Findings, not_finite

logger = logging.getLogger(__name__)

IMAGE_TOKENISER: Final = ("model.vqmodel.", "vqmodel.")
PROFILES: Final[Mapping[str, str]] = {
    "exact": "every tensor of the network",
    "transformer": "the transformer, without a continuous action head",
    "chameleon": "Chameleon, whose output rows of image codes start from zero and which has no action head",
}
_FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}
_LISTED = 6


class ChameleonNames(Mapping[str, Tensor]):
    """Stored weights without those of an image tokeniser.

    Args:
        stored: tensors of a file or folder.
    """

    def __init__(self, stored: StoredWeights):
        self.stored = stored
        self._names = [name for name in stored if not name.startswith(IMAGE_TOKENISER)]

    @property
    def left_out(self) -> int:
        """Tensors of the image tokeniser in the same files."""
        return len(self.stored) - len(self._names)

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header."""
        return self.stored.shape(name)

    def dtype(self, name: str) -> str:
        """A tensor's type as safetensors writes it, from the file's header."""
        return self.stored.dtype(name)


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a load does.

    Args:
        source: where the tensors come from.
        loaded: number of tensors copied.
        fresh: number of tensors that get initial values.
        repeated: query and key norms of which one row serves several heads.
        left_out: tensors of the image tokeniser in the same files.
    """

    source: str
    loaded: int
    fresh: int
    repeated: int
    left_out: int

    def told(self, done: str) -> str:
        """The report in words.

        Args:
            done: what was done with the tensors, for instance `loaded`.
        """
        lines = [f"{self.source}: {self.loaded} tensors {done}"]
        if self.repeated:
            lines.append(f"  of these, {self.repeated} query and key norms whose rows serve several heads each")
        if self.left_out:
            lines.append(f"  left out: {self.left_out} tensors of an image tokeniser")
        if self.fresh:
            lines.append(f"  new: continuous action head ({self.fresh} tensors)")
        return "\n".join(lines)


def open_weights(source: Path | str) -> ChameleonNames:
    """Weights at a path; headers are read, tensors not yet.

    Args:
        source: a safetensors file, an index of shards, or a folder with either; a policy folder is one.

    Raises:
        FileNotFoundError: nothing there, or a shard is missing.
        ValueError: a file is damaged, or not weights; the message names it.
    """
    return ChameleonNames(StoredWeights(source))


def check_profile(profile: str) -> None:
    """Refuse the name of an unknown profile.

    Raises:
        ValueError: listing those there are.
    """
    if profile not in PROFILES:
        known = "; ".join(f"{name!r} ({holds})" for name, holds in PROFILES.items())
        raise ValueError(f"expected a profile of WorldVLA's weights: {known}; got {profile!r}")


def check_fit(
    network: WorldVLATransformer, tensors: Mapping[str, Tensor], *, source: str, profile: str = "exact"
) -> LoadReport:
    """What `load_weights` would do; of stored weights only the headers are read.

    Args:
        network: may be empty (on the meta device).
        tensors: by name.
        source: name for messages.
        profile: what they may lack.

    Raises:
        ValueError: an unknown profile; a missing, foreign or misshapen tensor, or one that is no float.
    """
    check_profile(profile)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes = {name: _shape(tensors, name) for name in tensors}
    may_miss = {name for name in wanted if profile != "exact" and part_of(name) == "head"}
    absent = [name for name in wanted if name not in shapes]
    missing = [name for name in absent if name not in may_miss]
    if 0 < len(set(absent) & may_miss) < len(may_miss):
        missing = absent  # a head that is there only in part
    foreign = [name for name in shapes if name not in wanted]
    wrong = [
        f"{name}: expected shape {wanted[name]}, got {shapes[name]}"
        for name in wanted
        if name in shapes and not _can_become(shapes[name], wanted[name], name)
    ]
    strange = [name for name in shapes if name in wanted and _dtype(tensors, name) not in _FLOATS]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_LISTED])}{' …' if len(names) > _LISTED else ''}"
        for what, names in (
            ("missing tensors", missing),
            ("foreign tensors", foreign),
            ("tensors of another shape", wrong),
            ("tensors that are no floats", strange),
        )
        if names
    ]
    if problems:
        listed = "\n  - ".join(problems)
        raise ValueError(
            f"{source} does not fit this network:\n  - {listed}\nUse the configuration the weights were made with "
            f"(network.vocab_size is the rows of model.embed_tokens), or a profile among {', '.join(PROFILES)} "
            "(--initial.profile)."
        )
    return LoadReport(
        source=source,
        loaded=len(wanted) - len(absent),
        fresh=len(absent),
        repeated=sum(shapes[name] != wanted[name] for name in shapes),
        left_out=tensors.left_out if isinstance(tensors, ChameleonNames) else 0,
    )


def load_weights(
    network: WorldVLATransformer,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    profile: str = "exact",
    image_ids: Sequence[int] = (),
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> LoadReport:
    """Fill an empty network, all or nothing.

    Args:
        network: on the meta device; it comes to the CPU.
        tensors: by name.
        source: name for messages.
        profile: what they may lack.
        image_ids: ids of the image codes; `chameleon` sets their output rows to zero, so that training starts from
            equal image logits.
        seed: of what starts fresh.
        dtype: type of the network's values; float32 when `None`.

    Raises:
        ValueError: as `check_fit`, or a tensor that is not finite; the network is as it was.
    """
    report = check_fit(network, tensors, source=source, profile=profile)
    dtype = dtype or torch.float32
    state = network.state_dict()
    values = initial_values(network, [name for name in state if name not in tensors], seed)
    spoilt = []
    for name, empty in state.items():
        if name in tensors:
            tensor = tensors[name]
            if not torch.isfinite(tensor).all():
                spoilt.append(name)
            values[name] = _become(tensor, tuple(empty.shape))
        values[name] = values[name].to(dtype, copy=True)
    if spoilt:
        raise ValueError(
            f"{source}: expected finite weights, got NaN or infinity in {len(spoilt)} tensors: "
            f"{', '.join(spoilt[:_LISTED])}; the run that wrote them had diverged, take an earlier checkpoint"
        )
    if profile == "chameleon":
        values["lm_head.weight"][torch.tensor(image_ids, dtype=torch.long)] = 0
    network.load_state_dict({name: values[name] for name in state}, strict=True, assign=True)
    logger.info("%s", report.told("loaded"))
    return report


def write_published(network: WorldVLATransformer, folder: Path, *, norm_rows: int | None = None) -> Path:
    """Write a network as the published checkpoints are: a folder with `model.safetensors` (or shards).

    Args:
        network: what to write; its continuous head goes along.
        folder: to be made.
        norm_rows: rows of the query and key norms, as in the reference (1 for the 7 B model); one per head when
            `None`, as the standard classes have them.

    Returns:
        `folder`.

    Raises:
        FileExistsError: there is something at `folder`.
        ValueError: heads that would share a row differ.
    """
    if folder.exists():
        raise FileExistsError(f"expected a new folder, {folder} is there; remove it or choose another")
    tensors = dict(network.state_dict())
    if norm_rows is not None:
        for name in [name for name in tensors if _is_head_norm(name)]:
            tensors[name] = _shared_rows(tensors[name], norm_rows, name)
    config = network.config
    with atomic_folder(folder) as partial:
        write_weights(partial, tensors)
        write_json(
            partial / "config.json",
            {
                "model_type": "chameleon",
                "vocab_size": config.vocab_size,
                "hidden_size": config.dim,
                "intermediate_size": config.mlp_dim,
                "num_hidden_layers": config.num_layers,
                "num_attention_heads": config.num_heads,
                "num_key_value_heads": config.num_heads,
                "rms_norm_eps": config.norm_eps,
                "max_position_embeddings": config.max_length,
                "rope_theta": config.rope_base,
                "tie_word_embeddings": False,
                "model_parallel_size": norm_rows or config.num_heads,
            },
        )
    return folder


def inspect_weights(config: WorldVLAConfig, path: Path, *, profile: str | None = None, read: bool = False) -> Findings:
    """Hold weights against a configuration.

    Args:
        config: of the model.
        path: see `open_weights`.
        profile: what kind of weights they should be; `None` is `exact`, or `transformer` for weights without a head.
        read: also read every tensor and look for values that are not finite.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: a file is damaged or not weights, or an unknown profile.
    """
    tensors = open_weights(path)
    network = empty_network(config)
    has_head = any(part_of(name) == "head" for name in tensors)
    profile = profile or ("exact" if has_head or config.network.head is None else "transformer")
    check_profile(profile)
    report, problem = None, ""
    try:
        report = check_fit(network, tensors, source=str(path), profile=profile)
    except ValueError as error:
        problem = str(error)
    spoilt = not_finite(tensors) if read else []
    if spoilt:
        problem = "\n".join(filter(None, (problem, f"NaN or infinity in {len(spoilt)} tensors: {spoilt[:_LISTED]}")))
    state = network.state_dict()
    return Findings(
        path=str(path),
        files=len(tensors.stored.files),
        layout="Chameleon",
        groups=dict(Counter(map(part_of, tensors))),
        recognized=sum(name in state for name in tensors),
        parameters=sum(math.prod(tensors.shape(name)) for name in tensors),
        dtypes=dict(Counter(tensors.dtype(name) for name in tensors)),
        model=config.name,
        wanted=(len(state), sum(tensor.numel() for tensor in state.values())),
        profile=profile,
        holds=PROFILES[profile],
        report=report,
        is_read=read,
        problem=problem,
    )


def _is_head_norm(name: str) -> bool:
    return ".q_norm." in name or ".k_norm." in name


def _can_become(shape: tuple[int, ...], wanted: tuple[int, ...], name: str) -> bool:
    if shape == wanted:
        return True
    if name == "action_head.queries":  # published as one row of an embedding
        return math.prod(shape) == math.prod(wanted)
    rows = math.prod(shape[:-1])
    return _is_head_norm(name) and len(shape) <= 2 and shape[-1] == wanted[-1] and wanted[0] % max(rows, 1) == 0


def _become(tensor: Tensor, wanted: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) == wanted:
        return tensor
    if tensor.numel() == math.prod(wanted):
        return tensor.reshape(wanted)
    rows = tensor.reshape(-1, wanted[-1])
    return rows.repeat_interleave(wanted[0] // len(rows), dim=0)


def _shared_rows(tensor: Tensor, rows: int, name: str) -> Tensor:
    if rows < 1 or len(tensor) % rows:
        raise ValueError(f"expected norm_rows that divide the {len(tensor)} heads, got {rows}")
    groups = tensor.unflatten(0, (rows, -1))
    if not torch.equal(groups, groups[:, :1].expand_as(groups)):
        raise ValueError(
            f"{name}: expected heads that share a row to be alike, they differ (they were trained one by one); write "
            "one row per head (norm_rows=None), which the standard classes read"
        )
    return groups[:, 0].clone()


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tensors.shape(name) if isinstance(tensors, (ChameleonNames, StoredWeights)) else tuple(tensors[name].shape)


def _dtype(tensors: Mapping[str, Tensor], name: str) -> str:
    if isinstance(tensors, (ChameleonNames, StoredWeights)):
        return tensors.dtype(name)
    return str(tensors[name].dtype).removeprefix("torch.")
