"""WorldVLA `tiny` learns a world without chance: 3,000 steps each of joint training, the policy alone, plain causal.

    python runs/worldvla_learning.py --output outputs/worldvla_learning --results results/worldvla_learning

What is measured on held-out episodes, given the true ids before each: the share of action ids and of image codes whose
likeliest id is right; and how far the probabilities of later actions' ids move when the first action of a chunk is
another one. What is finished is not done again, what was interrupted continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import torch

from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.pushing import ROBOT, pushing_episodes
from wamkit.data.writer import LeRobotWriter
from wamkit.masks import action_mask
from wamkit.models.worldvla import config as sizes
from wamkit.models.worldvla.family import WorldVLA
from wamkit.models.worldvla.objective import WorldVLAObjective, action_only, joint
from wamkit.models.worldvla.samples import EncodedBatch, action_sample
from wamkit.policy import load_policy
from wamkit.recipes.execute import encode, execute
from wamkit.recipes.run import DataConfig, Run, ValidationConfig
from wamkit.training.stage import TrainStage

ROWS: dict[str, tuple[WorldVLAObjective, Literal["action", "causal"]]] = {
    "joint": (joint(), "action"),
    "actions": (action_only(), "action"),
    "causal": (action_only(), "causal"),
}


def recipe(objective: WorldVLAObjective, mask: Literal["action", "causal"], steps: int, output: Path) -> Run:
    """A run of one stage."""
    tiny = sizes.tiny(action_dim=3, state_dim=3)
    stage = TrainStage(
        name="learning",
        objective=objective,
        train=tiny.parts,
        steps=steps,
        batch_size=16,
        learning_rate=2e-3,
        warmup_steps=steps // 20,
        schedule="cosine",
        weight_decay=0.01,
        needs_future=objective.needs_future,
    )
    return Run(
        model=dataclasses.replace(tiny, mask=mask),
        stages=(stage,),
        data=DataConfig(root=output / "data", cache=output / "cache"),
        validation=ValidationConfig(every=max(1, steps // 6), fraction=0.1, num_windows=128),
        output=output,
        execution_horizon=5,
        save_every=500,
        device="cpu",
    )


def last_validation(folder: Path) -> dict[str, Any]:
    """The numbers at the end of training."""
    row: dict[str, Any] = json.loads((folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return row


def change_by_a_wrong_action(model: WorldVLA, dataset: LeRobotDataset, transforms: Any) -> float:
    """Largest change of a probability of later actions' ids when the first action of a chunk is another one."""
    frames = torch.from_numpy(dataset.frames(0, "front", [0, 1]))[None, None]
    columns = dataset.columns(0)
    codes = model.encode_frames(frames)[:, :, 0].transpose(1, 2)
    encoded = EncodedBatch(
        context=codes,
        future=None,
        known=torch.ones(1, 2, dtype=torch.bool),
        state=torch.zeros(1, 3),
        actions=transforms.action.normalizer.normalize(torch.tensor(columns["action"][None, 1:6])),
        task=[dataset.episodes[0].task],
    )
    vocab, builder = model.vocabulary, model.builder
    batch = builder.batch([action_sample(builder, encoded, 0)], torch.zeros(1, dtype=torch.bool))
    first, second, *_ = (batch.ids[0] == vocab.begin_action).nonzero()[:, 0].tolist()
    wrong = batch.ids.clone()
    wrong[0, first + 1] = vocab.action[0] if wrong[0, first + 1] != vocab.action[0] else vocab.action[-1]
    with torch.inference_mode():
        right, moved = (
            model.network.logits(model.network(ids, action_mask(batch.block))).softmax(dim=-1)
            for ids in (batch.ids, wrong)
        )
    later = slice(second, second + 4 * builder.config.block_length - 1)
    return float((right - moved)[0, later].abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of dataset, cache and models")
    parser.add_argument("--results", type=Path, required=True, help="folder for results.json")
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    data = options.output / "data"
    episodes = pushing_episodes()
    with LeRobotWriter(data, ROBOT) as writer:
        for episode in episodes[writer.num_episodes :]:
            writer.add(episode)
    rows = {}
    for name, (objective, mask) in ROWS.items():
        run = recipe(objective, mask, options.steps, options.output / name)
        run = dataclasses.replace(run, data=DataConfig(root=data, cache=options.output / "cache"))
        if not rows:
            encode(run)  # one cache serves all: codes do not depend on what is made of them
        execute(run)
        policy = load_policy(run.output / "policy")
        row = last_validation(run.output)
        model: Any = policy.model
        rows[name] = {
            "action_accuracy": row["action_accuracy"],
            "code_accuracy": row.get("code_accuracy") if objective.world_share else None,
            "change_by_a_wrong_first_action": change_by_a_wrong_action(model, LeRobotDataset(data), policy.transforms),
        }
        print(name, rows[name], flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    about = {"script": "runs/worldvla_learning.py", "steps": options.steps, "torch": torch.__version__, "rows": rows}
    (options.results / "results.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
