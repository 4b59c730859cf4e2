"""`wamkit select`: of a run's policies the one that solves most, chosen on episodes that no score is told of."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from wamkit.cli.main import main
from wamkit.data.encoded import codecs_digest
from wamkit.envs.metaworld import MetaWorldFactory
from wamkit.evaluation.results import EPISODES_FILE, RESULTS_FILE
from wamkit.evaluation.selection import candidates_in, choose
from wamkit.models.wav import config as wav
from wamkit.policy import load_policy
from wamkit.untrained import untrained_policy

SEE_AND_ACT = {"stages": [{"name": "see"}, {"name": "act"}]}
ZOO = Path(__file__).parents[2] / "zoo" / "wav-libero-object-small"
QUICK = ("--tasks", "drawer-open-v3", "--episodes", "2", "--max-steps", "3", "--workers", "0", "--num-steps", "1")


def write_policies(checkpoints: Path, *names: str) -> None:
    """As training leaves them, with random weights."""
    config = wav.tiny(action_dim=4, state_dim=4)
    robot = MetaWorldFactory(height=32, width=32).robot
    for seed, name in enumerate(names):
        policy = untrained_policy(config, robot, execution_horizon=4, seed=seed)
        stage, step = name.split("-step_")
        training = {"recipe": SEE_AND_ACT, "stage": stage, "step": int(step)}
        policy.save(checkpoints / name, config=config.to_dict(), training=training)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selection") / "run"
    write_policies(folder / "checkpoints", "see-step_40", "act-step_9", "act-step_100", "act-step_20")
    (folder / "checkpoints" / ".act-step_30.partial").mkdir()
    (folder / "checkpoints" / ".act-step_30.partial" / "spec.json").write_text("{")
    return folder


def solve(evaluation: Path, *layouts: int) -> None:
    """Let an evaluation's log say that its policy solved these layouts."""
    log = evaluation / EPISODES_FILE
    records = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps({**item, "success": item["layout"] in layouts}) + "\n" for item in records))
    (evaluation / RESULTS_FILE).unlink()


def test_the_last_stages_policies_in_the_order_of_training(run: Path) -> None:
    found = candidates_in([run])
    assert [(item.name, item.stage, item.step) for item in found] == [
        ("act-step_9", "act", 9),
        ("act-step_20", "act", 20),
        ("act-step_100", "act", 100),
    ]


@pytest.mark.sim
@pytest.mark.usefixtures("types_unchecked")
def test_what_solves_most_is_chosen(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = Path(shutil.copytree(run, tmp_path / "run")), tmp_path / "choice"
    asked = ["select", str(run), "--output", str(out), *QUICK]

    def select() -> tuple[str, dict[str, Any], dict[str, Any]]:
        assert main(asked) == 0
        told = json.loads((out / "selection.json").read_text())
        return capsys.readouterr().out, told, json.loads((out / "policy" / "training.json").read_text())

    printed, told, training = select()
    assert "metaworld/v1 (layout_seed=2042, max_steps=3)" in printed, "not the layouts of the protocol's scores"
    assert told["chosen"] == "act-step_100", "none solved anything: of equals the last"
    assert [(row["name"], row["successes"], row["trials"]) for row in told["candidates"]] == [
        ("act-step_9", 0, 2),
        ("act-step_20", 0, 2),
        ("act-step_100", 0, 2),
    ]
    assert training["stage"] == "act" and training["step"] == 100
    before = os.stat(out / "policy" / "model.safetensors").st_mtime_ns
    select()
    assert os.stat(out / "policy" / "model.safetensors").st_mtime_ns == before, "chosen already"

    solve(out / "evaluations" / "act-step_9", 0)
    solve(out / "evaluations" / "act-step_20", 1)
    printed, told, training = select()
    assert told["chosen"] == "act-step_20" and [row["successes"] for row in told["candidates"]] == [1, 1, 0]
    assert told["against_last"]["only_first"] == 1 and "1 won, 0 lost of 2, p = 1" in printed
    assert training["selected"] == {
        "protocol": "metaworld/v1 (layout_seed=2042, max_steps=3)",
        "num_candidates": 3,
        "name": "act-step_20",
        "fingerprint": load_policy(run / "checkpoints" / "act-step_20").fingerprint,
        "successes": 1,
        "trials": 2,
    }
    chosen, copy = load_policy(run / "checkpoints" / "act-step_20"), load_policy(out / "policy")
    weights = copy.model.network.state_dict()
    assert all((weights[name] == tensor).all() for name, tensor in chosen.model.network.state_dict().items())

    # After more training the new one alone is asked.
    write_policies(run / "checkpoints", "act-step_200")
    line = (out / "evaluations" / "act-step_9" / EPISODES_FILE).read_text()
    _, told, _ = select()
    assert len(told["candidates"]) == 4 and told["chosen"] == "act-step_20"
    assert (out / "evaluations" / "act-step_9" / EPISODES_FILE).read_text() == line

    # Under other rules nothing here is the same any more; what was chosen stays.
    assert main([*asked, "--max-steps", "4"]) == 2
    assert "holds another evaluation" in capsys.readouterr().err
    assert json.loads((out / "selection.json").read_text()) == told

    # A copy that somebody changed is made again.
    shutil.copy(run / "checkpoints" / "act-step_9" / "model.safetensors", out / "policy" / "model.safetensors")
    shutil.rmtree(out / "policy" / "codecs")
    select()
    assert codecs_digest(out / "policy" / "codecs") == codecs_digest(run / "checkpoints" / "act-step_20" / "codecs")
    weights = load_policy(out / "policy").model.network.state_dict()
    assert all((weights[name] == tensor).all() for name, tensor in chosen.model.network.state_dict().items())

    # What was chosen once cannot compete where it would be replaced.
    rival = ["select", str(run / "checkpoints" / "act-step_9"), str(out / "policy"), "--output", str(out), *QUICK]
    assert main(rival) == 2 and "expected candidates outside" in capsys.readouterr().err
    assert (out / "policy" / "spec.json").is_file()

    # A candidate that lost an episode to its simulator did not run the same ones.
    log = out / "evaluations" / "act-step_9" / EPISODES_FILE
    first, second = (json.loads(line) for line in log.read_text().splitlines())
    log.write_text(json.dumps(first) + "\n" + json.dumps({**second, "error": "worker 0 died"}) + "\n")
    (log.parent / RESULTS_FILE).unlink()
    with pytest.raises(RuntimeError, match="act-step_9 lost episodes to simulator errors"):
        choose(candidates_in([run]), out)
    select()  # tries it again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--layout-seed", "1042"], "the initial states that choose a policy cannot judge it as well"),
        (["RUN", "--tasks", "drawer"], "has no task drawer"),
        (["RUN", "--episodes", "0"], "expected between 1 and"),
        (["RUN", "--protocol", "metaworld/v9"], "unknown protocol 'metaworld/v9'"),
        (["RUN/checkpoints/act-step_9"], "expected two or more policies to choose among, found 1"),
        (["RUN", "RUN/checkpoints/act-step_9"], "expected each policy once"),
        (["RUN/nothing"], "expected a policy folder at"),
        (["RUN", "ZOO"], "do not fit"),
        (["RUN", "--planner-iterations", "2"], "--planner none uses none"),
        (["RUN/../empty"], "expected policies in"),
        ([], "expected two or more policies to choose among, found 0 (none); a run keeps more of them with"),
    ],
)
def test_what_cannot_be_chosen_among(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.parent / "empty" / "checkpoints").mkdir(parents=True, exist_ok=True)
    out = tmp_path / "out"
    words = [word.replace("RUN", str(run)).replace("ZOO", str(ZOO)) for word in arguments]
    assert main(["select", *words, "--output", str(out)]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_other_peoples_folders_are_left_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for out, message in ((tmp_path, "holds other things (thesis.tex)"), (tmp_path / "thesis.tex", "found a file")):
        assert main(["select", str(run), "--output", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "selection.json").write_text('{"my": 1}')
    assert main(["select", str(run), "--output", str(tmp_path)]) == 2
    assert "holds other things (selection.json, thesis.tex)" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["spec.json", "training.json"])
def test_no_checkpoint_is_passed_over_in_silence(run: Path, tmp_path: Path, change: str) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    file = run / "checkpoints" / "act-step_9" / change
    if change == "spec.json":
        file.unlink()
        with pytest.raises(FileNotFoundError, match=r"act-step_9 is not a complete policy folder: spec\.json"):
            candidates_in([run])
    else:
        file.write_text("{}")
        with pytest.raises(ValueError, match=r"act-step_9 to name a stage of training, it does not"):
            candidates_in([run])


def test_policies_of_several_runs_are_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_policies(tmp_path / name / "checkpoints", "act-step_9")
    found = candidates_in([tmp_path / "one", tmp_path / "two"])
    assert [item.name for item in found] == ["one-checkpoints-act-step_9", "two-checkpoints-act-step_9"]
