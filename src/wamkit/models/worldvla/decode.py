"""Choosing ids one after the other, from what the grammar allows: chunks of actions, and frames.

Nothing is kept between calls: a `Prefix` holds what was read, each decoder puts its own ids behind it and takes them
away again. A slot of the cache says nothing of its position, so prompts of different lengths stand in one batch.

Source: WorldVLA (arXiv 2506.21539); section 4 of the specification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wamkit.masks import causal_mask
from wamkit.models.worldvla.network import WorldVLATransformer
from wamkit.models.worldvla.sequence import Prompts, SequenceBuilder
from wamkit.nn.kv_cache import KeyValueCache

MAX_FREE_IDS = 300
"""After so many ids the released code gives up."""


@runtime_checkable
class Choose(Protocol):
    """Picks one of some allowed ids: `logits` over them, `step` names the choice for draws."""

    def __call__(self, logits: Float[Tensor, "*n c"], step: str) -> Int[Tensor, "*n"]: ...


def likeliest(logits: Float[Tensor, "*n c"], step: str) -> Int[Tensor, "*n"]:
    """The one with the largest logit."""
    return logits.argmax(dim=-1)


class MalformedActions(ValueError):
    """Freely decoded ids that are not a chunk of actions."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Prompts that were read.

    Args:
        cache: keys and values of `width` slots.
        lengths: ids of each prompt; slots behind them hold padding, which nothing may see.
        width: slots of the longest prompt.
        hidden: of every prompt position.
    """

    cache: KeyValueCache
    lengths: Int[Tensor, " b"]
    width: int
    hidden: Float[Tensor, "b l d"]

    @property
    def visible(self) -> Bool[Tensor, "b l"]:
        """Slots that hold a prompt's own ids."""
        return torch.arange(self.width, device=self.lengths.device) < self.lengths[:, None]

    @property
    def last(self) -> Float[Tensor, "b d"]:
        """Hidden state behind each prompt's last id."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        return self.hidden[rows, self.lengths - 1]


def prefill(network: WorldVLATransformer, prompts: Prompts, *, room: int) -> Prefix:
    """Read prompts once.

    Args:
        network: in evaluation mode.
        prompts: padded on the right.
        room: slots for what is decoded behind them.

    Raises:
        ValueError: prompt and answer do not fit into the network's context.
    """
    rows, width = prompts.ids.shape
    cache = network.cache(rows, width + room)
    visible = torch.arange(width, device=prompts.ids.device) < prompts.lengths[:, None]
    mask = causal_mask(width, prompts.ids.device) & visible[:, None, None]
    # Padding sees itself, so that no query is without a key.
    mask = mask | torch.eye(width, dtype=torch.bool, device=mask.device)
    hidden = network(prompts.ids, mask, cache=cache)
    return Prefix(cache=cache, lengths=prompts.lengths, width=width, hidden=hidden)


def decode_actions(
    network: WorldVLATransformer, builder: SequenceBuilder, prefix: Prefix, *, choose: Choose = likeliest
) -> Int[Tensor, "b p a"]:
    """Ids of a chunk's actions, in the way that the model's mask asks for: all blocks at once, or one by one."""
    if builder.config.mask == "action":
        return decode_blocks(network, builder, prefix, choose=choose)
    return decode_in_order(network, builder, prefix, choose=choose)


def decode_blocks(
    network: WorldVLATransformer,
    builder: SequenceBuilder,
    prefix: Prefix,
    *,
    choose: Choose = likeliest,
    offset: int | None = None,
) -> Int[Tensor, "b p a"]:
    """All actions of a chunk at the same time, in as many steps as an action has channels.

    The blocks stand beside each other in one row, each at the position it has in the sequence, and see the prompt and
    themselves: the action mask makes each what it would be one after the other. Nothing of the prompt is copied.

    Args:
        network: in evaluation mode, trained with the action mask.
        builder: knows the layout.
        prefix: action prompts.
        choose: picks each id.
        offset: positions between two blocks; the layout's when `None`. 0 would make all blocks alike.
    """
    config, vocab = builder.config, builder.vocabulary
    rows, count = len(prefix.lengths), config.action_horizon
    device = prefix.lengths.device
    block = torch.arange(count, device=device)
    step = config.block_length if offset is None else offset
    first = prefix.lengths[:, None] + step * block
    own = torch.eye(count, dtype=torch.bool, device=device).expand(rows, 1, count, count)
    mask = repeat(prefix.visible, "b l -> b 1 p l", p=count)
    ids = torch.full((rows, count), vocab.begin_action, device=device)
    bins = vocab.id_of_bin.to(device)
    logits_of = network.logits_of(bins)
    chosen = []
    for channel in range(config.action_dim):
        mask = torch.cat((mask, own), dim=-1)
        hidden = network(ids, mask, positions=first + channel, cache=prefix.cache)
        ids = bins[choose(logits_of(hidden), f"action{channel}")]
        chosen.append(ids)
    prefix.cache.cut(prefix.width)
    return torch.stack(chosen, dim=-1)


def decode_in_order(
    network: WorldVLATransformer, builder: SequenceBuilder, prefix: Prefix, *, choose: Choose = likeliest
) -> Int[Tensor, "b p a"]:
    """The same id after id, each fed back alone; begin and end ids are set. Serves both masks.

    With the action mask a draw of block k uses the same numbers as in `decode_blocks`.
    """
    config, vocab = builder.config, builder.vocabulary
    rows, device = len(prefix.lengths), prefix.lengths.device
    bins = vocab.id_of_bin.to(device)
    logits_of = network.logits_of(bins)
    seen = prefix.visible
    block_start = prefix.width
    chunk = []
    place = 0

    def read(ids: Tensor, *, hides_others: bool) -> Tensor:
        nonlocal seen, place
        seen = torch.cat((seen, seen.new_ones(rows, 1)), dim=1)
        mask = seen.clone()
        if hides_others:
            mask[:, prefix.width : block_start] = False
        positions = (prefix.lengths + place)[:, None]
        place += 1
        return network(ids[:, None], mask[:, None, None], positions=positions, cache=prefix.cache)[:, 0]

    hides = config.mask == "action"
    for number in range(config.action_horizon):
        block_start = prefix.width + number * config.block_length
        ids = torch.full((rows,), vocab.begin_action, device=device)
        action = []
        for channel in range(config.action_dim):
            hidden = read(ids, hides_others=hides)
            # the draws of a step are for all blocks together, of which this one takes its own
            logits = repeat(logits_of(hidden), "b c -> b p c", p=config.action_horizon)
            ids = bins[choose(logits, f"action{channel}")[:, number]]
            action.append(ids)
        read(ids, hides_others=hides)
        read(torch.full_like(ids, vocab.end_action), hides_others=hides)
        chunk.append(torch.stack(action, dim=-1))
    prefix.cache.cut(prefix.width)
    return torch.stack(chunk, dim=1)


def decode_freely(
    network: WorldVLATransformer, builder: SequenceBuilder, prefix: Prefix, *, limit: int = MAX_FREE_IDS
) -> list[Int[Tensor, "p a"]]:
    """The likeliest of all ids until the turn mark, as in the released code; the number of actions is the model's.

    Args:
        network: in evaluation mode.
        builder: knows the layout.
        prefix: one action prompt.
        limit: most ids.

    Returns:
        The action ids of each row.

    Raises:
        MalformedActions: no turn mark within the limit, or something else than whole actions before it.
    """
    config, vocab = builder.config, builder.vocabulary
    found = []
    for row in range(len(prefix.lengths)):
        ids = [int(network.logits(prefix.last[row]).argmax())]
        cache = prefix.cache.row(row)
        own: list[int] = []  # block of each id fed so far; -1 outside
        inside, number = False, -1
        while ids[-1] != vocab.end_turn:
            if len(ids) >= limit:
                raise MalformedActions(f"expected a turn mark within {limit} ids, got none; use constrained decoding")
            if ids[-1] == vocab.begin_action and not inside:
                inside, number = True, number + 1
            own.append(number if inside else -1)
            if ids[-1] == vocab.end_action:
                inside = False
            behind = torch.tensor(own, device=prefix.lengths.device)
            sees = torch.ones_like(behind, dtype=torch.bool)
            if config.mask == "action":
                sees = (behind == behind[-1]) | (behind < 0) | (behind[-1] < 0)
            mask = torch.cat((prefix.visible[row], sees))[None, None, None]
            position = (prefix.lengths[row] + len(ids) - 1)[None, None]
            fed = torch.tensor([[ids[-1]]], device=behind.device)
            hidden = network(fed, mask, positions=position, cache=cache)
            ids.append(int(network.logits(hidden[0, 0]).argmax()))
        found.append(_parsed(ids[:-1], builder).to(prefix.lengths.device))
    return found


def _parsed(ids: list[int], builder: SequenceBuilder) -> Int[Tensor, "p a"]:
    config, vocab = builder.config, builder.vocabulary
    size = config.block_length
    blocks = [ids[start : start + size] for start in range(0, len(ids), size)]
    bins = set(vocab.action)
    for number, block in enumerate(blocks):
        is_whole = len(block) == size and (block[0], block[-1]) == (vocab.begin_action, vocab.end_action)
        if not is_whole or not bins.issuperset(block[1:-1]):
            raise MalformedActions(
                f"expected action {number} as {vocab.begin_action}, {config.action_dim} action bins, "
                f"{vocab.end_action}, got {block}; use constrained decoding"
            )
    return torch.tensor([block[1:-1] for block in blocks], dtype=torch.long).reshape(len(blocks), config.action_dim)


def decode_frame(
    network: WorldVLATransformer,
    builder: SequenceBuilder,
    prompts: Prompts,
    *,
    choose: Choose = likeliest,
    guidance: float = 1.0,
) -> Int[Tensor, "b v y x"]:
    """The codes of the next frame; everything but the codes is set.

    Args:
        network: in evaluation mode.
        builder: knows the layout.
        prompts: world prompts.
        choose: picks each code.
        guidance: classifier-free guidance; other than 1, the prompt's logits are set against those of an image
            without any prompt.
    """
    config, vocab = builder.config, builder.vocabulary
    side, device = config.grid, prompts.ids.device
    head = torch.tensor([vocab.begin_image, builder.grid_id, builder.grid_id], device=device)
    codes = vocab.id_of_code.to(device)
    logits_of = network.logits_of(codes)
    asked = _with_head(prompts, head, vocab.pad)
    if guidance != 1:
        alone = asked.ids.new_full(asked.ids.shape, vocab.pad)
        alone[:, : len(head)] = head
        lengths = torch.cat((asked.lengths, torch.full_like(asked.lengths, len(head))))
        asked = Prompts(ids=torch.cat((asked.ids, alone)), lengths=lengths)
    prefix = prefill(network, asked, room=config.frame_length)
    last, seen = prefix.last, prefix.visible
    place = 0
    frame = []
    for number in range(config.num_views * side * side):
        logits = logits_of(last)
        if guidance != 1:
            given, free = logits.chunk(2)
            logits = free + guidance * (given - free)
        code = choose(logits, f"code{number}")
        frame.append(code)
        ids = codes[code][:, None]
        ids = torch.cat((ids, _structure(number + 1, ids, builder, head)), dim=1)
        if guidance != 1:
            ids = ids.repeat(2, 1)
        count = ids.shape[1]
        if number + 1 < config.num_views * side * side:
            before = repeat(seen, "b l -> b q l", q=count)
            mask = torch.cat((before, causal_mask(count, device).expand(len(ids), count, count)), dim=-1)[:, None]
            positions = prefix.lengths[:, None] + place + torch.arange(count, device=device)
            last = network(ids, mask, positions=positions, cache=prefix.cache)[:, -1]
            seen = torch.cat((seen, seen.new_ones(len(ids), count)), dim=1)
            place += count
    return rearrange(torch.stack(frame, dim=1), "b (v y x) -> b v y x", v=config.num_views, y=side, x=side)


def _with_head(prompts: Prompts, head: Tensor, pad: int) -> Prompts:
    """Prompts with the first ids of an image behind each."""
    rows = torch.arange(len(prompts.lengths), device=head.device)[:, None]
    ids = torch.cat((prompts.ids, prompts.ids.new_full((len(rows), len(head)), pad)), dim=1)
    ids[rows, prompts.lengths[:, None] + torch.arange(len(head), device=head.device)] = head
    return Prompts(ids=ids, lengths=prompts.lengths + len(head))


def _structure(number: int, like: Tensor, builder: SequenceBuilder, head: Tensor) -> Tensor:
    """What stands between code `number` - 1 of a frame and code `number`."""
    side, vocab = builder.config.grid, builder.vocabulary
    ids: list[int] = []
    if number % side == 0:
        ids.append(vocab.row_end)
    if number % (side * side) == 0:
        ids += [vocab.end_image, *head.tolist()]
    return like.new_tensor(ids).expand(len(like), len(ids))


def sampler(
    uniform: Callable[[str, tuple[int, ...]], Float[Tensor, "b ..."]], *, temperature: float, top_k: int = 0
) -> Choose:
    """Draws ids by their probability.

    Args:
        uniform: numbers of (0, 1) by the step's name and a row's shape; each row has a generator of its own.
        temperature: of the logits; 0 takes the likeliest.
        top_k: draws among so many of the likeliest; 0 is all.
    """
    if not temperature:
        return likeliest

    def choose(logits: Float[Tensor, "b *n c"], step: str) -> Int[Tensor, "b *n"]:
        kept = logits
        if 0 < top_k < logits.shape[-1]:
            least = logits.topk(top_k, dim=-1).values[..., -1:]
            kept = logits.masked_fill(logits < least, -torch.inf)
        gumbel = -torch.log(-torch.log(uniform(step, tuple(logits.shape[1:])))).to(logits)
        return (kept / temperature + gumbel).argmax(dim=-1)

    return choose
