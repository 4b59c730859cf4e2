"""The public trainer's YAML files become recipes: settings in their published form, and files that cannot be read."""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from wamkit.cli.main import main
from wamkit.cli.planner import PlannerOptions
from wamkit.data.image_settings import ColorJitter
from wamkit.data.lerobot import LeRobotDataset
from wamkit.data.synthetic import synthetic_episodes, synthetic_robot
from wamkit.data.value_labels import ArmChannels, DenseValueSettings, label_values
from wamkit.data.writer import LeRobotWriter
from wamkit.models.wav import config as wav
from wamkit.planning.config import PlannerConfig
from wamkit.policy import load_policy
from wamkit.recipes import RECIPES
from wamkit.recipes.reference_yaml import read_reference_yaml

from ..codecs.test_text_t5 import random_encoder, write_tokenizer
from ..codecs.test_video_ltx import TINY, random_vae


def libero_action() -> dict[str, Any]:
    """The keys and values of a last stage on LIBERO, as the public files have them."""
    windows = {
        "data_roots": ["datasets"],
        "domains": ["libero"],
        "sample_size": [256, 256],
        "sample_n_frames": 500,
        "preprocess": "resize",
        "valid_cam": ["image", "wrist_image"],
        "chunk": 9,
        "action_chunk": 36,
        "n_previous": 4,
        "previous_pick_mode": "random",
        "random_crop": False,
        "ignore_seek": False,
        "action_type": "absolute",
        "action_space": "eef",
        "stat_file": "datasets/libero/meta/stats.jsonl",
        "state_key": "state",
        "action_key": "actions",
        "value_key": "state_value",
        "value_dense": True,
        "extra_parquet_index": False,
    }
    network = {
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 64,
        "attention_out_bias": True,
        "caption_channels": 4096,
        "cross_attention_dim": 2048,
        "in_channels": 128,
        "norm_elementwise_affine": False,
        "norm_eps": 1.0e-6,
        "num_attention_heads": 32,
        "num_layers": 28,
        "out_channels": 128,
        "patch_size": 1,
        "patch_size_t": 1,
        "qk_norm": "rms_norm_across_heads",
        "action_expert": True,
        "action_in_channels": 15,
        "action_out_channels": 15,
        "action_num_attention_heads": 16,
        "action_attention_head_dim": 32,
        "value_expert": True,
        "value_in_channels": 10,
        "value_num_attention_heads": 16,
        "value_attention_head_dim": 32,
    }
    return {
        "model_name": "ltx_train",
        "is_i2v": True,
        "report_to": "wandb",
        "output_dir": "PATH/TO/YOUR/OUTPUT",
        "pretrained_model_name_or_path": "pretrained_models/LTX_video_part",
        "train_data_class_path": "data/libero_dataset.py",
        "train_data_class": "CustomLeRobotDataset",
        "diffusion_model_class_path": "models/ltx_models/transformer_ltx_multiview.py",
        "return_action": True,
        "train_mode": "action_full",
        "action_loss_scale": 1.0,
        "value_loss_scale": 1.0,
        "exploration": True,
        "explore_config": {
            "explore_steps": 5,
            "dynamic_groups": 30,
            "value_groups": 5,
            "sigma_decay": 0.5,
            "alpha_smooth": 0.9,
            "value_elites": 0.1,
            "dynamic_elites": 0.9,
        },
        "train_steps": 30000,
        "steps_to_save": 3000,
        "mixed_precision": "bf16",
        "seed": 42,
        "add_state": True,
        "caption_dropout_p": 0.0,
        "batch_size": 16,
        "gradient_checkpointing": True,
        "noise_to_first_frame": 0.01,
        "optimizer": "adamw",
        "lr": "5e-5",  # YAML 1.1 reads a number without a point as text
        "beta1": 0.9,
        "beta2": 0.95,
        "beta3": 0.999,
        "epsilon": "1e-8",
        "weight_decay": "1e-5",
        "max_grad_norm": 1.0,
        "gradient_accumulation_steps": 1,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 1000,
        "flow_weighting_scheme": "none",
        "flow_logit_mean": 0.0,
        "flow_logit_std": 1.0,
        "flow_mode_scale": 1.29,
        "pixel_wise_timestep": True,
        "diffusion_model": {"model_path": "stage2/step_30000", "config": network},
        "data": {"train": windows, "val": copy.deepcopy(windows)},
        "use_color_jitter": True,
        "num_inference_step": 10,
        "noisy_video": True,
        "load_weights": True,
        "deepspeed": {"zero_optimization": {"stage": 2}},
    }


def write(tmp_path: Path, settings: dict[str, Any], name: str = "action_model_libero.yaml") -> Path:
    path = tmp_path / name
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_the_published_libero_stage_is_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="wamkit"):
        found = read_reference_yaml(write(tmp_path, libero_action()), num_processes=8)
    run, ours = found.run, RECIPES["wav-libero"]()
    assert run.model.network == wav.libero().network
    named = {"name": "libero", "codec": ours.model.codec}
    assert dataclasses.replace(run.model, **named) == ours.model
    assert run.model.codec.pretrained == "pretrained_models/LTX_video_part"
    assert run.stages == (ours.stages[-1],)
    assert run.data == ours.data and run.data.color_jitter == ColorJitter.published()
    assert (run.execution_horizon, run.precision, run.activation_checkpointing, run.seed, run.save_every) == (
        ours.execution_horizon,
        "bf16",
        True,
        42,
        3000,
    )
    assert run.initial.path == Path("stage2/step_30000") and run.initial.profile == "wav_value"
    assert run.output == Path(), "a placeholder is no path"
    assert found.num_steps == 10
    assert found.planner == PlannerConfig(iterations=5)
    said = "\n".join(caplog.messages)
    for part in (
        "class names and paths: diffusion_model_class_path",
        "data.val",
        "is_i2v",
        "data.stat_file",
        "deepspeed",
        "beta3",
    ):
        assert part in said


def test_the_other_stages_are_ours(tmp_path: Path) -> None:
    ours = RECIPES["wav-libero"]()
    value = libero_action() | {"train_mode": "value_only", "exploration": False}
    value["diffusion_model"]["config"]["action_expert"] = False
    found = read_reference_yaml(write(tmp_path, value), num_processes=8)
    assert found.run.stages == (ours.stages[1],) and found.planner is None
    assert found.run.model.network.action is None and found.run.initial.profile == "wav_video"
    video = value | {"train_mode": "video_only", "lr": "3e-4", "noise_to_first_frame": 0.1, "caption_dropout_p": 0.06}
    video |= {"train_steps": 40_000, "load_weights": False}
    video["diffusion_model"]["config"]["value_expert"] = False
    found = read_reference_yaml(write(tmp_path, video), num_processes=8)
    assert found.run.stages == (ours.stages[0],)
    assert found.run.initial.path == Path() and found.run.initial.profile == "ge_base"


def test_two_arms_relative_actions_and_single_processes(tmp_path: Path) -> None:
    real = libero_action() | {"train_data_class_path": "data/lerobot_like_dataset.py", "add_state": True}
    real["diffusion_model"]["config"] |= {"action_in_channels": 14, "action_out_channels": 14, "value_in_channels": 17}
    real["data"]["train"] |= {"valid_cam": ["top", "left", "right"], "action_chunk": 54, "action_type": "relative"}
    run = read_reference_yaml(write(tmp_path, real)).run
    assert (run.model.num_views, run.model.action_dim, run.model.state_dim) == (3, 14, 14)
    assert not run.model.concatenates_state and run.data.normalization == "meanstd"
    assert run.data.action_type == "relative" and run.stages[0].batch_size == 16
    joined = libero_action()
    joined["diffusion_model"]["config"] |= {"action_in_channels": 28, "action_out_channels": 28}
    run = read_reference_yaml(write(tmp_path, joined)).run
    assert run.model.concatenates_state and (run.model.action_dim, run.model.state_dim) == (14, 14)


def changed(where: str, value: Any) -> dict[str, Any]:
    """The settings with one key changed, by its path; `None` removes it."""
    settings = libero_action()
    part: Any = settings
    *parents, key = where.split(".")
    for name in parents:
        part = part[name]
    if value is None:
        del part[key]
    else:
        part[key] = value
    return settings


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("learning_rate", 1.0, "unknown key 'learning_rate'"),
        ("noise_to_first_frames", 0.1, "unknown key 'noise_to_first_frames'; perhaps 'noise_to_first_frame'"),
        ("data.train.chunks", 9, "unknown key 'data.chunks'"),
        ("train_mode", "everything", "train_mode to be one of"),
        ("train_mode", None, "a value for train_mode"),
        ("optimizer", "prodigy", "expected optimizer: adamw"),
        ("optimizer_8bit", True, "expected optimizer_8bit: False"),
        ("lr_scheduler", "polynomial", "lr_scheduler to be one of"),
        ("mixed_precision", "fp16", "mixed_precision to be one of"),
        ("pixel_wise_timestep", False, "expected pixel_wise_timestep: True"),
        ("lr", "fast", "expected lr as float, got 'fast'"),
        ("batch_size", 1.5, "expected batch_size as int"),
        ("flow_weighting_scheme", "cubic", "flow_weighting_scheme to be one of"),
        ("diffusion_model", 3, "a mapping under diffusion_model"),
        ("diffusion_model.config.qk_norm", "layer_norm", "expected qk_norm: rms_norm_across_heads"),
        ("diffusion_model.config.out_channels", 64, "expected out_channels: 128"),
        ("diffusion_model.config.action_in_channels", 16, "expected action_out_channels: 16"),
        ("diffusion_model.config.action_expert", False, r"trains \['action'\], whose experts are not built"),
        ("data.train.sample_size", [192, 256], r"square images, got sample_size \[192, 256\]"),
        ("data.train.valid_cam", [], "a list of cameras"),
        ("data.train.previous_pick_mode", "newest", "previous_pick_mode to be one of"),
        ("data.train.action_type", "velocity", "action_type to be one of"),
        ("train_data_class_path", "data/mine.py", "expected train_data_class_path to be one of"),
        ("explore_config.sigma_decay", None, "a value for sigma_decay"),
        ("explore_config", None, "needs an explore_config"),
    ],
)
def test_what_cannot_be_a_recipe_is_refused(where: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_reference_yaml(write(tmp_path, changed(where, value)))


def test_a_file_is_a_planner_too(tmp_path: Path) -> None:
    path = write(tmp_path, libero_action())
    assert PlannerOptions(planner=str(path), candidates=8).config() == PlannerConfig(iterations=5, num_videos=8)
    with pytest.raises(ValueError, match="exploration is off"):
        PlannerOptions(planner=str(write(tmp_path, changed("exploration", False)))).config()


def test_nothing_in_a_file_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"seed: !!python/object/apply:pathlib.Path.touch [{tmp_path}/made]\n", encoding="utf-8")
    assert main(["train", str(path)]) == 2
    assert "expected plain YAML" in capsys.readouterr().err and not (tmp_path / "made").exists()
    path.write_text("[1, 2]", encoding="utf-8")
    assert main(["train", str(path)]) == 2
    assert "expected a YAML mapping, got list" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "none.yaml")]) == 2
    assert "expected a YAML file" in capsys.readouterr().err


def tiny_action(pretrained: Path, output: Path) -> dict[str, Any]:
    """The last stage on the synthetic robot, small enough for a test."""
    settings = changed("train_data_class_path", "data/lerobot_like_dataset.py")
    experts = {f"{name}_{key}": size for name in ("action", "value") for key, size in EXPERT.items()}
    settings["diffusion_model"]["config"] |= experts | {
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "cross_attention_dim": 32,
        "num_layers": 2,
        "in_channels": 8,
        "out_channels": 8,
        "caption_channels": 16,
        "action_in_channels": 3,
        "action_out_channels": 3,
    }
    settings["data"]["train"] |= {"sample_size": [64, 64], "action_chunk": 9, "n_previous": 2}
    settings["data"]["train"] |= {"sample_n_frames": 10}
    settings |= {"pretrained_model_name_or_path": str(pretrained), "output_dir": str(output), "train_steps": 2}
    return settings | {"batch_size": 2, "load_weights": False, "mixed_precision": False, "lr_warmup_steps": 0}


EXPERT = {"num_attention_heads": 2, "attention_head_dim": 8}


@pytest.mark.slow
def test_a_file_trains_behind_pretrained_codecs_and_acts(tmp_path: Path) -> None:
    pretrained = tmp_path / "ltx-video"
    random_vae(TINY).save_pretrained(pretrained / "vae")
    write_tokenizer(pretrained / "tokenizer")
    random_encoder().save_pretrained(pretrained / "text_encoder")
    root = tmp_path / "dataset"
    with LeRobotWriter(root, synthetic_robot(height=48, width=64)) as writer:  # brought to 64 x 64 by the recipe
        for episode in synthetic_episodes(2, length=24, height=48, width=64):
            writer.add(episode)
    arms = (ArmChannels(name="", wrist_camera="wrist", state=(0, 1), action=(0, 1)),)
    label_values(LeRobotDataset(root), DenseValueSettings(third_person="front", arms=arms, image_size=None))
    path = write(tmp_path, tiny_action(pretrained, tmp_path / "run"), "tiny.yaml")
    assert main(["train", str(path), "--data.root", str(root), "--device", "cpu"]) == 0
    policy = load_policy(tmp_path / "run" / "policy", num_steps=2)
    policy.reset([0], seeds=[0])
    video = torch.zeros(1, 2, 48, 64, 3, dtype=torch.uint8)
    chunk = policy.act([0], video=video, state=torch.zeros(1, 3), task=["push the red square"], executed=[0])
    assert chunk.actions.shape == (1, 9, 3) and chunk.actions.isfinite().all()
