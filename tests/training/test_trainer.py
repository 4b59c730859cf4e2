"""The trainer: it learns, trains what a stage names, and a resumed run is bit for bit the uninterrupted one."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from regression_family import Regression, RegressionObjective, Windows, make_stages, run
from torch import Tensor

import wamkit
from wamkit.checkpoint import read_policy
from wamkit.draws import TrainingDraws
from wamkit.lock import FolderLock
from wamkit.training.log import read_metrics
from wamkit.training.trainer import TrainingDiverged, step_draws, train
from wamkit.types import Batch
from wamkit.weight_files import read_weights

TIMINGS = ("samples_per_s", "wall_s")


class PowerCutError(Exception):
    """Ends a run at a chosen step, as a crash would: without saving."""


def cut_after(num_steps: int) -> Callable[[dict[str, Any]], None]:
    rows = []

    def log(row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) == num_steps:
            raise PowerCutError

    return log


def outcome(folder: Path) -> dict[str, Any]:
    """Everything a run leaves behind except timings: content of every file, metrics, position."""
    files: dict[str, Any] = {}
    for file in sorted((folder / "checkpoints").rglob("*")):
        # The card repeats training.json; both name the commit, which may change while tests run in a work tree.
        if file.is_file() and file.name != "README.md":
            name = file.relative_to(folder).as_posix()
            files[name] = json.loads(file.read_text()) if file.suffix == ".json" else file.read_bytes()
            if file.name == "state.json":
                del files[name]["position"]["wall_s"]
            if file.name == "training.json":
                del files[name]["commit"]
    rows = [{key: value for key, value in row.items() if key not in TIMINGS} for row in metrics(folder)]
    return {"files": files, "metrics": rows, "folder": sorted(os.listdir(folder))}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "metrics.jsonl")


def weights(model: Regression) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the uninterrupted run leaves behind."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    run(folder)
    return outcome(folder)


def test_the_loss_falls(tmp_path: Path) -> None:
    run(tmp_path, stages=make_stages((60, 90)), save_every=1000)
    rows = metrics(tmp_path)

    def mean(stage: str, key: str, part: slice) -> float:
        values = [row["losses"][key] for row in rows if row["stage"] == stage]
        return sum(values[part]) / len(values[part])

    assert mean("see", "see_loss", slice(-20, None)) < 0.4 * mean("see", "see_loss", slice(5))
    assert mean("act", "act_loss", slice(-20, None)) < 0.8 * mean("act", "act_loss", slice(5))


# The run has stages of 4 and 6 steps and saves after see 3, see 4 (its end), act 3 and act 6 (its end).
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 7, 9, 10])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, straight: dict[str, Any], cut: int) -> None:
    with pytest.raises(PowerCutError):
        run(tmp_path / "run", log=cut_after(cut))
    assert len(metrics(tmp_path / "run")) == cut
    model = Regression(seed=99)  # a new process starts from other weights; the checkpoint brings the right ones
    report = run(tmp_path / "run", **({"model": model} if cut > 3 else {}))
    assert (report.stopped_by, report.checkpoint.name) == (None, "act-step_6")
    # The last step before a cut is not saved yet when the log is told about it.
    expected = {1: None, 2: None, 3: None, 4: "see-step_3", 5: "see-step_4", 7: "see-step_4"}.get(cut, "act-step_3")
    assert (report.resumed_from.name if report.resumed_from else None) == expected
    assert outcome(tmp_path / "run") == straight


def test_cuts_may_come_in_series(tmp_path: Path, straight: dict[str, Any]) -> None:
    for cut in (4, 2, 3, 5):
        with pytest.raises(PowerCutError):
            run(tmp_path / "run", log=cut_after(cut), save_every=3)
    run(tmp_path / "run")
    assert outcome(tmp_path / "run") == straight


@pytest.mark.parametrize("saves", [True, False])
def test_moments_and_average_resume_exactly(tmp_path: Path, saves: bool) -> None:
    """Two steps, save, two more: the state in the middle of a stage equals that of four straight steps."""
    stages = [dataclasses.replace(stage, ema_decay=0.5, steps=8) for stage in make_stages()]
    settings: dict[str, Any] = {"stages": stages, "save_every": 2} | ({} if saves else {"save_policy": None})
    with pytest.raises(PowerCutError):
        run(tmp_path / "straight", log=cut_after(5), **settings)
    with pytest.raises(PowerCutError):
        run(tmp_path / "resumed", log=cut_after(3), **settings)
    assert sorted(os.listdir(tmp_path / "resumed" / "checkpoints")) == ["see-step_2"]
    with pytest.raises(PowerCutError):
        run(tmp_path / "resumed", log=cut_after(3), **settings)
    state = tmp_path / "resumed" / "checkpoints" / "see-step_4" / "training_state"
    names = ["average.safetensors", "network.safetensors", "optimizer.safetensors", "state.json"]
    assert sorted(os.listdir(state)) == names
    moments = read_weights(state / "optimizer.safetensors")
    assert moments["step.eye_state.weight"] == 4 and moments["exp_avg.eye_state.weight"].abs().sum() > 0
    assert not any("hand" in name for name in moments), "only what the stage trains has moments"
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "straight")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_after_the_step_and_the_run_goes_on_later(
    tmp_path: Path, straight: dict[str, Any], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def log(row: dict[str, Any]) -> None:
        if (row["stage"], row["step"]) == ("act", 2):
            os.kill(os.getpid(), getattr(signal, name))

    report = run(tmp_path / "run", log=log)
    assert (report.stopped_by, report.checkpoint.name, report.steps) == (name, "act-step_2", 6)
    assert f"stopped by {name}" in caplog.text and "run again to continue" in caplog.text
    assert {number: signal.getsignal(number) for number in before} == before, "handlers are given back"
    report = run(tmp_path / "run")
    assert (report.stopped_by, report.steps, report.resumed_from.name) == (None, 4, "act-step_2")
    assert outcome(tmp_path / "run") == straight


def test_a_killed_process_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL at an arbitrary moment of a real training process, then to the end."""
    stages = make_stages((20, 20))
    script = Path(__file__).with_name("regression_family.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(wamkit.__file__).parents[1])}
    log = tmp_path / "killed" / "metrics.jsonl"
    command = [sys.executable, str(script), str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not log.exists() or len(log.read_text().splitlines()) < 28:
        assert process.poll() is None and time.monotonic() < deadline, "training ended before it was killed"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    report = run(tmp_path / "killed", stages=stages)
    assert report.resumed_from is not None and report.resumed_from.name.startswith("act-step_")
    run(tmp_path / "straight", stages=stages)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")


def test_a_complete_run_returns_at_once_with_its_weights(tmp_path: Path, straight: dict[str, Any]) -> None:
    first = Regression()
    run(tmp_path / "run", model=first)
    again = Regression(seed=5)
    report = run(tmp_path / "run", model=again)
    assert (report.steps, report.checkpoint.name) == (0, "act-step_6")
    assert not differing(weights(first), weights(again))
    assert outcome(tmp_path / "run") == straight


def test_a_stage_changes_its_parts_and_nothing_else(tmp_path: Path) -> None:
    """WAV's acceptance check 7 for any family: bitwise, after each stage."""
    see, act = make_stages()
    model = Regression()
    start = weights(model)
    run(tmp_path / "see", model=model, stages=[see])
    after = weights(model)
    eye = {name for name in start if name.startswith("eye")}
    assert differing(start, after) == eye | {"num_seen"}
    hand_only = dataclasses.replace(act, train=("hand",), steps=1, accumulation=1)
    run(tmp_path / "hand", model=model, stages=[hand_only])
    assert differing(after, weights(model)) == {name for name in start if name.startswith("hand")} | {"num_seen"}


def test_gradients_flow_through_what_is_not_trained(tmp_path: Path) -> None:
    act = make_stages()[1]
    stage = dataclasses.replace(act, objective=RegressionObjective(act_weight=1.0), train=("eye",))
    model = Regression()
    start = weights(model)
    run(tmp_path, model=model, stages=[stage])
    assert {"eye.0.weight", "eye.0.bias"} <= differing(start, weights(model)), "reached through the frozen hand"
    assert not any("hand" in name for name in differing(start, weights(model)))


def test_training_gives_back_what_it_borrowed(tmp_path: Path) -> None:
    model = Regression()
    model.network.eval()
    model.network.eye_state.bias.requires_grad_(False)
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    run(tmp_path, model=model)
    assert torch.equal(torch.rand(3), expected), "the global generator goes on where it was"
    assert not any(module.training for module in model.network.modules())
    required = {name: parameter.requires_grad for name, parameter in model.network.named_parameters()}
    assert [name for name, value in required.items() if not value] == ["eye_state.bias"]
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_policies_hold_the_average_and_training_goes_on_with_the_weights(tmp_path: Path) -> None:
    see = dataclasses.replace(make_stages()[0], ema_decay=0.99, learning_rate=0.1)
    run(tmp_path, stages=[see], save_every=3)
    middle = tmp_path / "checkpoints" / "see-step_3"
    policy = read_policy(middle)
    assert policy.training["averaged"] and (policy.training["stage"], policy.training["step"]) == ("see", 3)
    average = read_weights(middle / "training_state" / "average.safetensors")
    raw = read_weights(middle / "training_state" / "network.safetensors")
    published = policy.load_weights()
    assert all(torch.equal(published[name], tensor) for name, tensor in average.items())
    assert set(average) == differing(published, raw)
    end = read_policy(tmp_path / "checkpoints" / "see-step_4").load_weights()
    assert not differing(end, read_weights(tmp_path / "checkpoints" / "see-step_4" / "training_state"))


def test_the_average_is_the_one_written_down(tmp_path: Path) -> None:
    """Averages from the weights after every step, with the decay that `TrainStage` documents."""
    see = dataclasses.replace(make_stages()[0], ema_decay=0.3)
    run(tmp_path, stages=[see], save_every=1, keep=10)
    saved = [tmp_path / "checkpoints" / f"see-step_{step}" / "training_state" for step in (1, 2, 3)]
    average = {name: tensor for name, tensor in weights(Regression()).items() if name.startswith("eye")}
    for update, state in enumerate(saved):
        decay = min(0.3, (1 + update) / (10 + update))
        raw = read_weights(state / "network.safetensors")
        average = {name: decay * tensor + (1 - decay) * raw[name] for name, tensor in average.items()}
        got = read_weights(state / "average.safetensors")
        for name, tensor in average.items():
            torch.testing.assert_close(got[name], tensor)


def test_the_average_is_what_a_stage_ends_with(tmp_path: Path) -> None:
    """A longer run of the same stage shows the average after the shorter one's last step."""
    see = make_stages()[0]
    model = Regression()
    run(tmp_path / "four", model=model, stages=[see])
    run(tmp_path / "five", stages=[dataclasses.replace(see, steps=5)], save_every=4)
    state = tmp_path / "five" / "checkpoints" / "see-step_4" / "training_state"
    average = read_weights(state / "average.safetensors")
    raw = read_weights(state / "network.safetensors")
    for name, tensor in average.items():
        assert torch.equal(model.network.state_dict()[name], tensor) and not torch.equal(raw[name], tensor)
    saved = read_weights(tmp_path / "four" / "checkpoints" / "see-step_4" / "training_state")
    assert not differing(saved, weights(model))


def test_accumulation_averages_gradients(tmp_path: Path) -> None:
    """Two batches of 3 accumulated give the gradient of their mean loss; dropout off, so that it can be recomputed."""
    act = dataclasses.replace(make_stages()[1], steps=1, max_grad_norm=1e9)
    model, twin = Regression(), Regression()
    for network in (model.network, twin.network):
        network.eye[2].p = 0.0
    run(tmp_path, model=model, stages=[act])
    source = Windows(act)
    losses = [
        twin.loss(source.batch(micro), act.objective, step_draws(11, 0, 0, micro, act.batch_size))[0]
        for micro in range(2)
    ]
    (torch.stack(losses).mean()).backward()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in twin.network.parameters()]))
    (row,) = metrics(tmp_path)
    assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert row["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_a_diverging_run_stops_with_names_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    see = dataclasses.replace(make_stages()[0], learning_rate=1e30, steps=50)
    with pytest.raises(TrainingDiverged) as caught:
        run(tmp_path, stages=[see], save_every=1)
    message = str(caught.value)
    assert "stage 'see', step" in message and "episodes [" in message and "lower learning rate than 1e+30" in message
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert str(kept[-1]) in message
    assert all(
        tensor.isfinite().all() for tensor in read_weights(kept[-1] / "training_state" / "network.safetensors").values()
    )
    with pytest.raises(TrainingDiverged, match="no checkpoint yet"):
        run(tmp_path / "other", stages=[see], save_every=1000)


def test_another_recipe_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        run(tmp_path, log=cut_after(6), recipe={"data": {"root": "a"}}, data_fingerprint="f1")
    see, act = make_stages()
    changed = dataclasses.replace(act, learning_rate=0.5, objective=RegressionObjective(act_weight=2.0))
    with pytest.raises(ValueError) as caught:
        run(tmp_path, stages=[see, changed], seed=12, recipe={"data": {"root": "b"}}, data_fingerprint="f2")
    lines = str(caught.value).splitlines()
    assert "another recipe" in lines[0] and "train in another folder" in lines[-1]
    assert sorted(line.strip(" -") for line in lines[1:-1]) == [
        "data.root: saved 'a', now 'b'",
        "data_fingerprint: saved 'f1', now 'f2'",
        "seed: saved 11, now 12",
        "stages[1].learning_rate: saved 0.003, now 0.5",
        "stages[1].objective.act_weight: saved 1.0, now 2.0",
        "stages[1].objective.see_weight: saved 0.5, now 0.0",
    ]
    with pytest.raises(ValueError, match=r"stages: saved \['see', 'act'\], now \['see'\]"):
        run(tmp_path, stages=[see], recipe={"data": {"root": "a"}}, data_fingerprint="f1")


def test_starting_afresh_never_destroys_a_run(tmp_path: Path, straight: dict[str, Any]) -> None:
    run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run up to act-step_6.*another folder"):
        run(tmp_path / "run", resume=False)
    assert outcome(tmp_path / "run") == straight


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path: Path, straight: dict[str, Any]) -> None:
    with pytest.raises(PowerCutError):
        run(tmp_path / "run", log=cut_after(9))
    latest = tmp_path / "run" / "checkpoints" / "act-step_3"
    file = latest / "training_state" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"act-step_3 cannot be resumed: .*optimizer.*Remove that folder"):
        run(tmp_path / "run")
    latest.rename(tmp_path / "damaged")
    assert run(tmp_path / "run").resumed_from.name == "see-step_4"
    assert outcome(tmp_path / "run") == straight


def test_old_checkpoints_go_and_the_last_of_each_stage_stays(tmp_path: Path) -> None:
    stages = [dataclasses.replace(stage, steps=5) for stage in make_stages()]
    run(tmp_path, stages=stages, save_every=1, keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["act-step_4", "act-step_5", "see-step_5"]
    for name in os.listdir(tmp_path / "checkpoints"):
        assert read_policy(tmp_path / "checkpoints" / name).training["stage"] == name.split("-")[0]


def test_policies_of_some_steps_stay_without_their_state(tmp_path: Path) -> None:
    stages = [dataclasses.replace(stage, steps=5) for stage in make_stages()]
    run(tmp_path, stages=stages, save_every=1, keep=2, keep_policy_every=2)
    checkpoints = tmp_path / "checkpoints"
    states = {path.name: (path / "training_state").is_dir() for path in checkpoints.iterdir()}
    assert states == {
        **{"see-step_2": False, "see-step_4": False, "see-step_5": True},
        **{"act-step_2": False, "act-step_4": True, "act-step_5": True},
    }
    for name in states:
        record = read_policy(checkpoints / name).training
        assert f"{record['stage']}-step_{record['step']}" == name
    # A kill between the two halves of a removal; going on removes the rest, and rewrites nothing.
    (checkpoints / "see-step_2" / ".training_state.partial").mkdir()
    assert run(tmp_path, stages=stages, save_every=1, keep_policy_every=2).steps == 0
    assert {path.name for path in checkpoints.iterdir()} == set(states)
    assert not (checkpoints / "see-step_2" / ".training_state.partial").exists()


def test_leftovers_of_a_killed_save_are_cleaned_up(tmp_path: Path, straight: dict[str, Any]) -> None:
    with pytest.raises(PowerCutError):
        run(tmp_path / "run", log=cut_after(9))
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / ".act-step_5.partial" / "training_state").mkdir(parents=True)
    (checkpoints / "..act-step_5.partial.partial").mkdir()
    (checkpoints / "act-step_3").rename(checkpoints / ".act-step_3.new")  # complete, killed before its last rename
    assert run(tmp_path / "run").resumed_from.name == "act-step_3"
    assert outcome(tmp_path / "run") == straight


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(BlockingIOError, match="another process is training"):
        run(tmp_path)
    run(tmp_path)


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2, with no process group and without RANK.*torchrun"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    run(tmp_path / "run")


def test_wrong_parts_are_refused_before_anything_runs(tmp_path: Path) -> None:
    see, act = make_stages()
    with pytest.raises(ValueError, match=r"stage 'act' trains \['foot'\].*\['eye', 'hand'\]"):
        run(tmp_path / "run", stages=[see, dataclasses.replace(act, train=("eye", "foot"))])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="save_every"):
        run(tmp_path / "run", save_every=0)
    with pytest.raises(ValueError, match="keep"):
        run(tmp_path / "run", keep=0)
    for wrong in ({"keep_policy_every": 4}, {"keep_policy_every": -3}, {"keep_policy_every": 3, "save_policy": None}):
        with pytest.raises(ValueError, match="keep_policy_every of 0, or a multiple of save_every=3"):
            run(tmp_path / "run", **wrong)


def test_a_part_that_the_loss_does_not_reach_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Detached(Regression):
        def loss(self, batch: Batch, objective: RegressionObjective, draws: TrainingDraws) -> Any:
            # Only the eye is asked, so that the hand has no gradient at all.
            pixels = batch.context[:, :, -1].flatten(1).float() / 127.5 - 1
            return self.network.eye_state(self.network.eye(pixels)).square().mean(), {}

    act = make_stages()[1]
    run(tmp_path / "run", model=Detached(), stages=[act])
    assert "trains the part 'hand', but its loss does not reach it" in caplog.text
    assert "'eye'" not in caplog.text
    with pytest.raises(ValueError, match=r"does not depend on the trained parts \['hand'\]"):
        run(tmp_path / "other", model=Detached(), stages=[dataclasses.replace(act, train=("hand",))])


def test_an_error_in_a_batch_comes_through(tmp_path: Path) -> None:
    class Broken(Windows):
        def batch(self, step: int) -> Batch:
            if step == 2:
                raise ValueError("episode 4: expected 10 frames, got 3")
            return super().batch(step)

    model = Regression()
    with pytest.raises(ValueError, match="episode 4: expected 10 frames"):
        train(model, make_stages(), Broken, folder=tmp_path, seed=0, save_every=5)
    assert len(metrics(tmp_path)) == 2


def test_training_json_says_where_a_policy_comes_from(tmp_path: Path) -> None:
    report = run(tmp_path, recipe={"model": {"width": 3}}, data_fingerprint="abc")
    record = read_policy(report.checkpoint).training
    assert (record["seed"], record["data_fingerprint"], record["stage"], record["step"]) == (11, "abc", "act", 6)
    assert record["recipe"]["model"] == {"width": 3}
    assert record["recipe"]["stages"][0]["objective"] == {
        "type": "RegressionObjective",
        "see_weight": 1.0,
        "act_weight": 0.0,
    }
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["wamkit"] == wamkit.__version__
    assert {**report.training, "stage": "act", "step": 6, "averaged": False} == record


def test_no_checkpoint_holds_a_pickle(tmp_path: Path) -> None:
    report = run(tmp_path)
    endings = {file.suffix for file in report.folder.rglob("*") if file.is_file() and not file.name.startswith(".")}
    assert endings == {".safetensors", ".json", ".jsonl", ".md"}


def test_progress_names_stage_losses_and_time_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="wamkit"):
        run(tmp_path)
    lines = [record.getMessage() for record in caplog.records if "left" in record.getMessage()]
    assert any(line.startswith("2/2 act: 6/6 steps, loss ") and "act_loss" in line for line in lines)
    assert len(lines) <= 4, "not one for every step"
