"""Decoding a chunk of actions all blocks at once, against id after id with the same cache and weights.

    python benchmarks/decode.py --output results/decode/results.json

Random weights on the CPU in float32, WorldVLA's action mask, chunks of 1, 5 and 10 actions. Sizes: `small` (one robot
and eight at once) and `slice`, four layers of the published 7 B network at its widths over the published sequence of
256 px with two frames (as much of it as fits a laptop). Both sides begin with the same prompt, read once into the same
cache, and must choose the same ids. They run in turn, and the fastest of several repetitions counts; reading the prompt
is measured beside them and is in neither. Prints `ratio NAME VALUE`: seconds of id after id over seconds of all blocks
at once, and with `_with_prefill` behind the name the same with the prompt's time on both sides.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wamkit.codecs.text_tokens import ByteTokenizer, WordTokenizer
from wamkit.codecs.vocabulary import VocabSpec
from wamkit.models.worldvla import config as sizes
from wamkit.models.worldvla.config import WorldVLAConfig
from wamkit.models.worldvla.decode import decode_blocks, decode_in_order, prefill
from wamkit.models.worldvla.network import WorldVLATransformer, empty_network, initialized
from wamkit.models.worldvla.sequence import Prompts, SequenceBuilder

SENTENCE = "put the bowl on the plate"


def one_slice() -> WorldVLAConfig:
    """Four of the published network's 32 layers, with the published sequence and a vocabulary of its named ids."""
    published = sizes.libero()
    network = dataclasses.replace(published.network, num_layers=4, vocab_size=16400)
    codec = dataclasses.replace(published.codec, text="bytes")
    return dataclasses.replace(published, network=network, codec=codec, name="slice")


def make_builder(config: WorldVLAConfig) -> SequenceBuilder:
    make = WordTokenizer if config.codec.text == "words" else ByteTokenizer
    tokenizer = make(num_codes=config.codec.num_codes)
    return SequenceBuilder(
        config, VocabSpec.from_vocabulary(tokenizer.vocabulary, num_codes=config.codec.num_codes), tokenizer
    )


def make_prompts(builder: SequenceBuilder, robots: int) -> Prompts:
    config, draws = builder.config, torch.Generator().manual_seed(0)
    shape = (config.num_context, config.num_views, config.grid, config.grid)
    rows = [
        builder.action_prompt(
            SENTENCE,
            torch.randint(config.codec.num_codes, shape, generator=draws),
            torch.zeros(config.state_dim) if config.reads_state else None,
        )
        for _ in range(robots)
    ]
    return builder.prompts(rows, len(rows[0]))


def fastest(sides: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Seconds of each side, which run in turn."""
    seconds = {name: float("inf") for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


@torch.inference_mode()
def measure(
    config: WorldVLAConfig, network: WorldVLATransformer, *, robots: int, horizon: int, repetitions: int
) -> dict[str, Any]:
    builder = make_builder(dataclasses.replace(config, action_horizon=horizon))
    prompts = make_prompts(builder, robots)
    room = horizon * builder.config.block_length
    prefix = prefill(network, prompts, room=room)
    at_once, in_order = decode_blocks(network, builder, prefix), decode_in_order(network, builder, prefix)
    if not torch.equal(at_once, in_order):
        raise SystemExit(f"{config.name}, {horizon} actions: the two sides chose other ids")
    seconds = fastest(
        {
            "prefill": lambda: prefill(network, prompts, room=room),
            "blocks": lambda: decode_blocks(network, builder, prefix),
            "in_order": lambda: decode_in_order(network, builder, prefix),
        },
        repetitions,
    )
    return {
        "size": config.name,
        "robots": robots,
        "action_horizon": horizon,
        "prompt_ids": int(prompts.lengths[0]),
        "ids_in_order": room,
        "steps_of_blocks": builder.config.action_dim,
        "seconds": seconds,
        "same_ids": True,
        "ratio": seconds["in_order"] / seconds["blocks"],
        "ratio_with_prefill": (seconds["prefill"] + seconds["in_order"]) / (seconds["prefill"] + seconds["blocks"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="leave out the slice")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    cases = [(sizes.small(action_dim=7), (1, 8))]
    if not options.quick:
        cases.append((one_slice(), (1,)))
    for config, counts in cases:
        network = initialized(empty_network(config), 0).eval().requires_grad_(False)
        for robots in counts:
            for horizon in (1, 5, 10):
                repetitions = options.repetitions if config.name == "small" else 3  # a slice takes seconds
                row = measure(config, network, robots=robots, horizon=horizon, repetitions=repetitions)
                rows.append(row)
                name = f"{row['size']}_b{robots}_k{horizon}"
                told = {key: f"{1000 * value:.1f} ms" for key, value in row["seconds"].items()}
                print(f"{name}: {told}")
                print(f"ratio {name} {row['ratio']:.2f}")
                print(f"ratio {name}_with_prefill {row['ratio_with_prefill']:.2f}")
    results = {
        "script": "benchmarks/decode.py",
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "repetitions": options.repetitions,
        "rows": rows,
    }
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
