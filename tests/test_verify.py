"""Golden verification: the recorded cases, cases nobody has seen, and files that are not what they should be."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wamkit import verify
from wamkit.cli.main import main
from wamkit.models.wav.experts import ExpertTokens
from wamkit.models.wav.model import WAVTransformer
from wamkit.nn.modulation import Timesteps

DATA = Path(__file__).parent / "data" / "wav_tiny.safetensors"


@pytest.mark.golden
@pytest.mark.parametrize("case", verify.read_cases(DATA), ids=lambda case: case.name)
def test_check_1_and_10_golden_parity(case: verify.GoldenCase) -> None:
    """Checks 1 (`out.*`) and 10 (`pipe.plan.*` with the reference pairing, `pipe.planfixed.*` with the right one)."""
    comparisons = verify.evaluate(case)
    recorded = {name for name in case.tensors if name.startswith(("out.", "pipe.")) and ".noise." not in name}
    assert {item.name.split("/")[1] for item in comparisons} == recorded - {"pipe.memory_latents"}
    assert [item.name for item in comparisons if not item.passed] == []
    assert any(item.is_index_set for item in comparisons)


@pytest.mark.golden
def test_a_wrong_number_is_found(tmp_path: Path) -> None:
    tensors = load_file(DATA)
    tensors["libero_tiny/out.action"] = tensors["libero_tiny/out.action"] + 1e-3
    elites = tensors["libero_tiny/pipe.plan.iter0.video_elite_idx"].clone()
    elites[0] = next(i for i in range(4) if i not in elites.tolist())
    tensors["libero_tiny/pipe.plan.iter0.video_elite_idx"] = elites
    save_file(tensors, tmp_path / "changed.safetensors")
    shutil.copy(DATA.with_suffix(".json"), tmp_path / "changed.json")
    cases = verify.read_cases(tmp_path / "changed.safetensors")
    failed = {item.name: item for case in cases for item in verify.evaluate(case) if not item.passed}
    assert set(failed) == {"libero_tiny/out.action", "libero_tiny/pipe.plan.iter0.video_elite_idx"}
    assert failed["libero_tiny/out.action"].error == pytest.approx(1e-3, rel=0.01)
    assert main(["verify", "golden", str(tmp_path / "changed.safetensors")]) == 1


def unseen_case(tmp_path: Path, experts: tuple[str, ...] = ("value", "action"), state: bool = True) -> Path:
    """A case of other widths, views, batch and planner settings.

    Single calls are recorded from the joint forward pass, one observation at a time; the sampler and planner from this
    library itself, which proves that other shapes are read and evaluated, not that they agree with the reference.
    """
    settings = json.loads(DATA.with_suffix(".json").read_text())
    case = copy.deepcopy(settings["cases"]["dualarm_tiny"])
    case["model"] |= {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "cross_attention_dim": 20,
        "caption_channels": 6,
        "max_view": 2,
        "action_in_channels": 5,
        "value_in_channels": 3,
        "value_expert": "value" in experts,
        "action_expert": "action" in experts,
    }
    case |= {"batch": 2, "views": 2, "mem": 1, "future": 2, "height": 1, "width": 2, "action_len": 3, "value_len": 4}
    explore = case["planner"]["explore_config"]
    explore |= {"explore_steps": 3, "dynamic_groups": 6, "value_groups": 4, "dynamic_elites": 0.5}
    model, rng = case["model"], torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    torch.manual_seed(5)
    network = WAVTransformer(verify.network_config(model)).eval()
    tensors = {f"w.{name}": value for name, value in network.state_dict().items()}
    latents, levels = normal(4, 4, 3, 1, 2), torch.tensor([650.0, 90.0])
    told = torch.cat((torch.zeros(2, 2), levels[:, None].expand(2, 4)), dim=1).repeat_interleave(2, dim=0)
    tensors |= {
        "in.latents_bcfhw": latents,
        "in.latents_packed": latents.flatten(2).transpose(1, 2).contiguous(),
        "in.cond_mask": (told == 0).float(),
        "in.video_timestep": told,
        "in.text": normal(2, 5, 6),
        "in.text_mask": torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]]),
        "in.action": normal(2, 3, 5),
        "in.action_timestep": torch.tensor([[420.0], [7.0]]).expand(2, 3).contiguous(),
        "in.value": normal(2, 4, 3),
        "in.value_timestep": torch.tensor([[77.0], [990.0]]).expand(2, 4).contiguous(),
        "pipe.memory_latents": latents[:2, :, :1].contiguous(),
    }
    if state:
        tensors["in.history_action_state"] = normal(2, 1, 5)
    both = len(experts) == 2
    if both:
        for name in ("plain.noise", "plan.noise.final"):
            tensors |= {f"pipe.{name}.video": normal(2, 4, 3, 1, 2), f"pipe.{name}.value": normal(1, 4, 3)}
        tensors |= {"pipe.plain.noise.action": normal(1, 3, 5), "pipe.plan.noise.action": normal(1, 3, 5)}
        for k in range(3):
            tensors[f"pipe.plan.noise.iter{k}.video"] = normal(12, 4, 3, 1, 2)
            tensors[f"pipe.plan.noise.iter{k}.value"] = normal(24, 4, 3)
    golden = verify.GoldenCase(name="other", settings=case, tensors=tensors, tolerances={})
    with torch.no_grad():
        if both:
            made = verify.pipeline(network, golden)
            tensors |= {f"pipe.{name}": value.contiguous() for name, value in made.items()}
        tensors |= joint_outputs(network, golden, experts)
    path = tmp_path / "unseen.safetensors"
    save_file({f"other/{name}": value.clone() for name, value in tensors.items()}, path)
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"cases": {"other": case}}))
    return path


def joint_outputs(network: WAVTransformer, case: verify.GoldenCase, experts: tuple[str, ...]) -> dict[str, Tensor]:
    """`out.video`, `out.value` and `out.action` from the joint forward pass, one observation at a time."""
    given, outputs = case.group("in."), []
    for row in range(2):
        one, pair = slice(row, row + 1), slice(2 * row, 2 * row + 2)

        def tokens(name: str, one: slice = one) -> ExpertTokens | None:
            if name not in experts:
                return None
            state = given.get("history_action_state") if name == "action" else None
            return ExpertTokens(
                tokens=given[name][one],
                timestep=given[f"{name}_timestep"][one, 0],
                state_token=None if state is None else state[one],
            )

        outputs.append(
            network(
                given["latents_packed"][pair][None],
                Timesteps.per_token(given["video_timestep"][pair][:1]),
                network.read_text(given["text"][one], given["text_mask"][one]),
                (3, 1, 2),
                tokens("value"),
                tokens("action"),
            )
        )
    made = {"out.video": torch.cat([output.video[0] for output in outputs])}
    made |= {f"out.{name}": torch.cat([getattr(output, name) for output in outputs]) for name in experts}
    return made


@pytest.mark.golden
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("experts", [("value", "action"), ("action",), ("value",), ()])
def test_cases_of_other_shapes_are_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], experts: tuple[str, ...], state: bool
) -> None:
    path = unseen_case(tmp_path, experts, state)
    arguments = ["verify", "golden", str(path), "--spec", str(tmp_path / "settings.json")]
    assert main(arguments) == 0
    assert "tensors within tolerance" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert all(item["passed"] for item in json.loads(capsys.readouterr().out))


def test_files_that_are_no_golden_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "golden", str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(DATA.read_bytes()[:10_000])
    shutil.copy(DATA.with_suffix(".json"), tmp_path / "cut.json")
    assert main(["verify", "golden", str(cut)]) == 2
    assert "copy it again" in capsys.readouterr().err
    assert main(["verify", "golden", str(DATA), "--spec", str(DATA)]) == 2
    assert "not the JSON of a golden file" in capsys.readouterr().err
    tensors = load_file(DATA)
    for change, message in (
        ({"libero_tiny/w.proj_in.weight": None}, "missing 1 of"),
        ({"libero_tiny/w.stranger": torch.zeros(2)}, "foreign"),
    ):
        changed = {name: value for name, value in {**tensors, **change}.items() if value is not None}
        save_file(changed, cut)
        assert main(["verify", "golden", str(cut)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": {}}, "describes no case"),
        ({"cases": None}, "no case"),
        ("views", "missing or malformed"),
        ("planner", "missing or malformed"),
    ],
)
def test_settings_that_miss_something_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object] | str, message: str
) -> None:
    settings = json.loads(DATA.with_suffix(".json").read_text())
    if isinstance(change, str):
        del settings["cases"]["libero_tiny"][change]
    else:
        settings |= change
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert main(["verify", "golden", str(DATA), "--spec", str(tmp_path / "settings.json")]) == 2
    assert message in capsys.readouterr().err
