"""Read the YAML files of WAV's public trainer and make them recipes of ours.

The files name classes by path, which the public trainer imports and runs; here they are only text. Every key is known:
it is used, or it is left out with a warning that says why, or it is an error.

Source: the public configurations of WAV; specification, appendix B and section 8, rows 20 and 21.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from wamkit.data.image_settings import ColorJitter
from wamkit.models.wav import objective as wav
from wamkit.models.wav.config import CodecConfig, ExpertConfig, NetworkConfig, WAVConfig
from wamkit.models.wav.load_policy import Profile
from wamkit.models.wav.objective import FlowWeighting, WAVObjective
from wamkit.planning.config import EXPLORE_CONFIG, PlannerConfig, with_explore_config
from wamkit.recipes.run import DataConfig, InitialWeights, Run
from wamkit.training.stage import TrainStage

logger = logging.getLogger(__name__)

UNUSED: dict[str, str] = {
    "class names and paths": "train_data_class_path train_data_class val_data_class_path val_data_class "
    "tokenizer_class_path tokenizer_class textenc_class_path textenc_class vae_class_path vae_class "
    "diffusion_model_class_path diffusion_model_class diffusion_scheduler_class_path diffusion_scheduler_class "
    "pipeline_class_path pipeline_class",
    "without effect in the public code": "model_name is_i2v rand_init_action pin_memory basic_fps threshold beta3 "
    "lr_num_cycles lr_power",
    "logging and launching": "report_to tracker_name logging_dir steps_to_log steps_to_val nccl_timeout allow_tf32 "
    "dataloader_num_workers scale_lr use_deepspeed deepspeed train_epochs",
    "decided by the command here": "return_action return_video return_value enable_slicing enable_tiling",
    "read from the dataset here": "data.val data.data_roots data.domains data.valid_cam data.dataset_info_cache_path "
    "data.repeat_dataset data.action_space data.stat_file data.state_key data.action_key data.value_key "
    "data.extra_parquet_index data.ignore_seek data.fix_sidx data.fix_mem_idx",
}
ARCHITECTURE: dict[str, Any] = {  # what the network is; another value is another network
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_out_bias": True,
    "norm_elementwise_affine": False,
    "patch_size": 1,
    "patch_size_t": 1,
    "qk_norm": "rms_norm_across_heads",
}
STAGES: dict[str, tuple[Callable[[], WAVObjective], tuple[str, ...], Profile]] = {
    "video_only": (wav.video_only, ("video",), "ge_base"),
    "value_only": (wav.value_only, ("value",), "wav_video"),
    "action_only": (wav.action_only, ("action",), "wav_value"),
    "value_action": (wav.value_action, ("value", "action"), "wav_value"),
    "action_full": (wav.action_full, ("video", "value", "action"), "wav_value"),
    "all": (wav.everything, ("video", "value", "action"), "wav_value"),
}
NORMALIZATION = {"data/libero_dataset.py": "minmax", "data/lerobot_like_dataset.py": "meanstd"}
_WIDTHS = {15: (7, 8), 28: (14, 14)}  # action and state of the published robots, by their sum


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """What a public configuration says, in our words.

    Args:
        run: the recipe, with the one stage of the file; `data.root` and paths that are placeholders in the file have to
            be set.
        planner: how it plans, or `None`.
        num_steps: Euler steps of the decoder.
    """

    run: Run
    planner: PlannerConfig | None
    num_steps: int


def read_reference_yaml(path: Path, *, num_processes: int = 1) -> ReferenceSettings:
    """Read a public configuration; nothing it names is imported.

    Args:
        path: the YAML file.
        num_processes: processes that train; the file's batch size is that of one of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML mapping, an unknown key, or a setting that this library does not have.
    """
    settings = _Settings(_read(path), str(path))
    network = settings.part("diffusion_model")
    data = settings.part("data", prefix="data").part("train", prefix="data")
    model, is_concatenated = _model(settings, network.part("config"), data)
    stage, profile = _stage(settings, model, num_processes)
    output, weights = settings.path("output_dir"), network.path("model_path")
    if not settings.get("load_weights", True):
        weights = Path()
    run = Run(
        model=model,
        stages=(stage,),
        data=_data(settings, data, is_concatenated),
        initial=InitialWeights(path=weights, profile=profile),
        output=output,
        execution_horizon=min(model.action_horizon, 8),
        seed=settings.get("seed", 42),
        save_every=settings.get("steps_to_save", 2000),
        precision=settings.choice("mixed_precision", {"bf16": "bf16", "no": "fp32", False: "fp32"}, "bf16"),
        activation_checkpointing=settings.get("gradient_checkpointing", True),
    )
    planner = _planner(settings)
    num_steps = settings.get("num_inference_step", 10)
    settings.finish()
    return ReferenceSettings(run=run, planner=planner, num_steps=num_steps)


class _Settings:
    """One mapping of the file; it knows which keys were asked for, and says at the end which were not."""

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = ""):
        self.values = values
        self.where = where
        self.prefix = prefix
        self.asked: set[str] = set()
        self.parts: list[_Settings] = []

    def get(self, key: str, default: Any) -> Any:
        """A value of the default's type; whole floats and numbers written as text (`3e-4`) become numbers."""
        self.asked.add(key)
        value = self.values.get(key, default)
        if default is None or isinstance(value, type(default)):
            return value
        try:
            if isinstance(default, (int, float)) and not isinstance(default, bool) and not isinstance(value, bool):
                number = float(value)
                if isinstance(default, float) or number == int(number):
                    return type(default)(number)
        except (TypeError, ValueError):
            pass
        raise ValueError(f"{self.where}: expected {key} as {type(default).__name__}, got {value!r}")

    def need(self, key: str, default: Any) -> Any:
        """A value that must be there, of the default's type."""
        if key not in self.values:
            raise ValueError(f"{self.where}: expected a value for {key}, found {sorted(self.values)}")
        return self.get(key, default)

    def choice(self, key: str, choices: Mapping[Any, Any], default: Any) -> Any:
        """Our word for one of theirs."""
        self.asked.add(key)
        value = self.values.get(key, default)
        if value not in choices:
            raise ValueError(f"{self.where}: expected {key} to be one of {list(choices)}, got {value!r}")
        return choices[value]

    def require(self, key: str, wanted: Any, because: str) -> None:
        """Refuse another value than `wanted`."""
        if self.get(key, wanted) != wanted:
            raise ValueError(f"{self.where}: expected {key}: {wanted}, got {self.values[key]!r}; {because}")

    def path(self, key: str) -> Path:
        """A path, or none when the file holds a placeholder such as PATH/TO/YOUR/OUTPUT."""
        text = self.get(key, "")
        if not text or "PATH" in text or "path/to" in text:
            return Path()
        return Path(text)

    def part(self, key: str, prefix: str = "") -> _Settings:
        """A mapping inside this one."""
        self.asked.add(key)
        value = self.values.get(key)
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.where}: expected a mapping under {key}, got {value!r}")
        self.parts.append(_Settings(value, self.where, prefix))
        return self.parts[-1]

    def finish(self) -> None:
        """Warn of what is left out.

        Raises:
            ValueError: a key that nobody knows.
        """
        reasons = {key: reason for reason, keys in UNUSED.items() for key in keys.split()}
        left_out: dict[str, list[str]] = {}
        for part in self._all():
            for key in part.values:
                full = f"{part.prefix}.{key}" if part.prefix else key
                if key in part.asked:
                    continue
                if full not in reasons:
                    known = sorted(part.asked | reasons.keys())
                    close = difflib.get_close_matches(key, known, n=1)
                    guess = f"; perhaps {close[0]!r} was meant" if close else ""
                    raise ValueError(f"{self.where}: unknown key {full!r}{guess}")
                left_out.setdefault(reasons[full], []).append(full)
        for reason, keys in left_out.items():
            logger.warning("%s: left out, %s: %s", self.where, reason, ", ".join(keys))

    def _all(self) -> list[_Settings]:
        return [self, *(item for part in self.parts for item in part._all())]


def _read(path: Path) -> Mapping[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"expected a YAML file at {path}, found none")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected plain YAML ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a YAML mapping, got {type(values).__name__}")
    return values


def _model(settings: _Settings, config: _Settings, data: _Settings) -> tuple[WAVConfig, bool]:
    for key, wanted in ARCHITECTURE.items():
        config.require(key, wanted, "this network is built so")
    settings.require("pixel_wise_timestep", True, "the public trainer fails without it")
    channels = config.get("in_channels", 128)
    config.require("out_channels", channels, "the network returns what it reads")
    heads, head_dim = config.get("num_attention_heads", 32), config.get("attention_head_dim", 64)
    config.require("cross_attention_dim", heads * head_dim, "text is projected to the network's width")
    network = NetworkConfig(
        latent_channels=channels,
        num_layers=config.get("num_layers", 28),
        num_heads=heads,
        head_dim=head_dim,
        text_width=config.get("caption_channels", 4096),
        norm_eps=config.get("norm_eps", 1e-6),
        value=_expert(config, "value", rope_base=57.0),
        action=_expert(config, "action", rope_base=54.0),
    )
    height, width = data.need("sample_size", [256, 256])
    if height != width:
        raise ValueError(f"{settings.where}: expected square images, got sample_size {[height, width]}")
    cameras = data.values.get("valid_cam")
    if not isinstance(cameras, list) or not cameras:
        raise ValueError(f"{settings.where}: expected a list of cameras under data.train.valid_cam, got {cameras!r}")
    tokens = config.get("action_in_channels", 0)
    is_concatenated = _normalization(settings) == "minmax"
    if is_concatenated and tokens not in _WIDTHS:
        raise ValueError(
            f"{settings.where}: expected action_in_channels of {' or '.join(map(str, _WIDTHS))}, the action and state "
            f"channels of the published robots together, got {tokens}; start from `wav-libero` or `wav-dualarm` and "
            "set model.action-dim and model.state-dim"
        )
    action_dim, state_dim = _WIDTHS[tokens] if is_concatenated else (tokens, tokens)
    model = WAVConfig(
        network=network,
        codec=CodecConfig(pretrained=_pretrained(settings)),
        num_views=len(cameras),
        image_size=height,
        num_context=data.get("n_previous", 4),
        num_future=data.get("chunk", 9),
        action_horizon=data.get("action_chunk", 36),
        action_dim=action_dim,
        state_dim=state_dim,
        concatenates_state=is_concatenated,
        has_state_token=settings.get("add_state", False),
        value_dense=data.get("value_dense", True),
        name=Path(settings.where).stem,
    )
    return model, is_concatenated


def _expert(config: _Settings, name: str, *, rope_base: float) -> ExpertConfig | None:
    channels = config.get(f"{name}_in_channels", 0)
    config.require(f"{name}_out_channels", channels, "an expert returns what it reads")
    heads, head_dim = config.get(f"{name}_num_attention_heads", 16), config.get(f"{name}_attention_head_dim", 32)
    if not config.get(f"{name}_expert", False):
        return None
    return ExpertConfig(channels=channels, num_heads=heads, head_dim=head_dim, rope_base=rope_base)


def _pretrained(settings: _Settings) -> str:
    path = settings.path("pretrained_model_name_or_path")
    return "" if path == Path() else str(path)


def _normalization(settings: _Settings) -> Literal["minmax", "meanstd"]:
    """The file says it by the path of the dataset class; it is read as a name."""
    named = settings.get("train_data_class_path", "data/libero_dataset.py")
    if named not in NORMALIZATION:
        raise ValueError(
            f"{settings.where}: expected train_data_class_path to be one of {list(NORMALIZATION)}, which stand for "
            f"normalisation by range and by mean and deviation, got {named!r}"
        )
    return cast(Literal["minmax", "meanstd"], NORMALIZATION[named])


def _stage(settings: _Settings, model: WAVConfig, num_processes: int) -> tuple[TrainStage, Profile]:
    mode = settings.need("train_mode", "")
    if mode not in STAGES:
        raise ValueError(f"{settings.where}: expected train_mode to be one of {list(STAGES)}, got {mode!r}")
    make, train, profile = STAGES[mode]
    present = set(model.parts)
    if not set(train) <= present:
        missing = sorted(set(train) - present)
        if mode not in ("action_full", "all") or missing != ["value"]:
            raise ValueError(f"{settings.where}: train_mode {mode} trains {missing}, whose experts are not built")
        train = tuple(part for part in train if part in present)
    objective = replace(
        make(),
        memory_noise=settings.get("noise_to_first_frame", 0.0),
        caption_dropout=settings.get("caption_dropout_p", 0.0),
        weighting=FlowWeighting(
            scheme=settings.choice(
                "flow_weighting_scheme",
                {name: name for name in ("none", "logit_normal", "mode", "sigma_sqrt", "cosmap")},
                "none",
            ),
            logit_mean=settings.get("flow_logit_mean", 0.0),
            logit_std=settings.get("flow_logit_std", 1.0),
            mode_scale=settings.get("flow_mode_scale", 1.29),
        ),
    )
    if model.network.value is None:
        objective = replace(objective, pure_value=False)
    noisy = settings.get("noisy_video", True)
    if mode not in ("video_only", "all"):
        objective = replace(objective, noisy_video=noisy)
    scales = {f"{name}_weight": settings.get(f"{name}_loss_scale", 1.0) for name in ("action", "value")}
    objective = replace(objective, **{key: scale for key, scale in scales.items() if getattr(objective, key)})
    settings.require("optimizer", "adamw", "the published runs use it")
    for key in ("optimizer_8bit", "optimizer_torchao"):
        settings.require(key, False, "moments are kept in 32 bits here")
    schedule = settings.choice(
        "lr_scheduler",
        {"constant_with_warmup": "constant", "constant": "constant", "cosine": "cosine"},
        "constant_with_warmup",
    )
    is_warm = settings.values.get("lr_scheduler") != "constant"
    warmup = settings.get("lr_warmup_steps", 0)
    accumulation = settings.get("gradient_accumulation_steps", 1)
    stage = TrainStage(
        name=mode,
        objective=objective,
        train=train,
        steps=settings.get("train_steps", 30_000),
        batch_size=settings.get("batch_size", 16) * num_processes,
        accumulation=accumulation,
        learning_rate=settings.get("lr", 3e-4),
        warmup_steps=warmup if is_warm else 0,
        schedule=schedule,
        betas=(settings.get("beta1", 0.9), settings.get("beta2", 0.95)),
        eps=settings.get("epsilon", 1e-8),
        weight_decay=settings.get("weight_decay", 1e-5),
        max_grad_norm=settings.get("max_grad_norm", 1.0),
        needs_future=objective.needs_future,
    )
    return stage, profile


def _data(settings: _Settings, data: _Settings, is_concatenated: bool) -> DataConfig:
    return DataConfig(
        pick=data.choice("previous_pick_mode", {"random": "random", "uniform": "uniform"}, "random"),
        action_offset=1,
        first_row=1,
        sample_n_frames=data.get("sample_n_frames", 500),
        normalization=_normalization(settings),
        action_type=data.choice("action_type", {name: name for name in ("absolute", "delta", "relative")}, "absolute"),
        preprocess=data.choice(
            "preprocess", {"resize": "resize", "center_crop_resize": "center_crop_resize"}, "resize"
        ),
        random_crop=data.get("random_crop", False),
        color_jitter=ColorJitter.published() if settings.get("use_color_jitter", False) else ColorJitter(),
    )


def _planner(settings: _Settings) -> PlannerConfig | None:
    """The file's search with our corrections; its seven numbers have to be complete, as the public code's defaults
    contradict each other.
    """
    wanted = settings.get("exploration", False)
    if "explore_config" not in settings.values:
        if wanted:
            raise ValueError(f"{settings.where}: exploration: true needs an explore_config with its seven numbers")
        return None
    found = settings.part("explore_config")
    types = {"explore_steps": 1, "dynamic_groups": 1, "value_groups": 1}  # whole numbers; the others are fractions
    planner = with_explore_config(
        PlannerConfig(), {key: found.need(key, types.get(key, 0.5)) for key in EXPLORE_CONFIG}
    )
    return planner if wanted else None
