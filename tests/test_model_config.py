"""What every family's configuration says: sizes that are refused, and the spec of a policy around it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from wamkit.data.synthetic import synthetic_robot
from wamkit.model_config import ModelConfig
from wamkit.models.wav import config as wav

ZOO = Path(__file__).parent.parent / "zoo"


@dataclass(frozen=True, kw_only=True)
class Plain(ModelConfig):
    """A configuration that says no more than it has to."""

    family = "plain"
    parts = ("all",)
    codec_batches = 0

    def codec_record(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Stepwise(Plain):
    """One whose memory frames are two control steps apart."""

    context_stride = 2


SIZES: dict[str, Any] = {
    "num_views": 2,
    "image_size": 32,
    "num_context": 3,
    "num_future": 2,
    "action_horizon": 8,
    "action_dim": 3,
    "state_dim": 3,
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_whole_numbers_in_their_range(name: str) -> None:
    least = int(name != "state_dim")
    with pytest.raises(ValueError, match=f"^model: expected {name} of {least} or more, got {least - 1}$"):
        Plain(**{**SIZES, name: least - 1})
    with pytest.raises(ValueError, match=f"^model: expected {name} as a whole number, got 1.5$"):
        Plain(**{**SIZES, name: 1.5})


def test_a_plain_family_has_no_values_and_remembers_calls() -> None:
    config = Plain(**SIZES)
    assert (config.value_channels, config.future_stride, config.context_stride) == (0, 4, None)
    assert not config.whole_windows and config.name == "custom"
    assert config.to_dict() == {**SIZES, "name": "custom"}


def test_a_model_without_pretrained_codecs_takes_no_folder_of_them() -> None:
    with pytest.raises(ValueError, match=r"'custom' of family 'plain' has none; leave the folder elsewhere out"):
        Plain(**SIZES).with_pretrained("elsewhere")
    moved = wav.libero().with_pretrained("elsewhere")
    assert isinstance(moved, wav.WAVConfig) and moved.codec.pretrained == "elsewhere"
    assert moved.with_pretrained("") == wav.libero()


@pytest.mark.parametrize("kind", [Plain, Stepwise])
def test_the_spec_of_a_policy_is_the_configurations(kind: type[ModelConfig]) -> None:
    config = kind(**SIZES)
    spec = config.spec_for(synthetic_robot(), execution_horizon=4, normalization="minmax", tasks=("push",))
    config.check_spec(spec)
    assert (spec.family, spec.num_context, spec.action_horizon, spec.execution_horizon) == ("plain", 3, 8, 4)
    assert (spec.image_size, spec.preprocess, spec.tasks) == (None, "exact", ("push",))
    assert spec.context_stride == config.context_stride
    other = config.spec_for(
        synthetic_robot(height=64, width=48), execution_horizon=8, normalization="none", preprocess="resize"
    )
    config.check_spec(other)
    assert (other.image_size, other.preprocess) == ((32, 32), "resize")
    with pytest.raises(ValueError, match="expected 1 <= execution_horizon <= action_horizon = 8, got 9"):
        config.spec_for(synthetic_robot(), execution_horizon=9, normalization="minmax")


def test_a_spec_that_remembers_at_another_rate_is_refused() -> None:
    config = Stepwise(**SIZES)
    spec = config.spec_for(synthetic_robot(), execution_horizon=4, normalization="minmax")
    for stride in (None, 1):
        with pytest.raises(
            ValueError, match=rf"says, 2 control steps between two of them \(context_stride\), got {stride}$"
        ):
            config.check_spec(dataclasses.replace(spec, context_stride=stride))
    Plain(**SIZES).check_spec(spec)  # it does not say how far apart they are


@pytest.mark.parametrize("policy", sorted(path.parent.name for path in ZOO.glob("wav-*/config.json")))
def test_configurations_written_before_are_read(policy: str) -> None:
    said = json.loads((ZOO / policy / "config.json").read_text(encoding="utf-8"))
    assert said.pop("type") == "wav"
    config = wav.WAVConfig.from_dict(said)
    written = config.to_dict()
    assert {key: written[key] for key in said} == said
    assert (config.parts, config.codec_batches) == (("video", "value", "action"), 12)
