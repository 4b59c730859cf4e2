"""One process alone is the identity of everything; what a launcher announces has to be true."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from wamkit.launcher import is_first_process
from wamkit.parallel import (
    any_process,
    from_rank_zero,
    gathered,
    global_mean,
    is_grouped,
    local_device,
    mean_over_processes,
    process_group,
    rank,
    rows_of_this_process,
    world_size,
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("alone", [False, True])
def test_one_process_is_the_identity(alone: bool) -> None:
    with process_group("cpu", alone=alone):
        assert is_grouped() == alone
        assert (rank(), world_size(), list(rows_of_this_process(3))) == (0, 1, [0, 1, 2])
        assert (mean_over_processes([1.5, 2.0]), gathered("x"), any_process(True), any_process(False)) == (
            [1.5, 2.0],
            ["x"],
            True,
            False,
        )
        assert from_rank_zero(lambda: 5) == 5
    assert not is_grouped()


def test_a_mean_over_one_process_is_a_mean() -> None:
    total = torch.tensor(6.0, requires_grad=True)
    for count in (4, torch.tensor(4)):
        mean = global_mean(total, count)
        (gradient,) = torch.autograd.grad(mean, total)
        assert (mean.item(), gradient.item()) == (1.5, 0.25)
    assert global_mean(total, torch.tensor(0)).item() == 6.0, "nothing counted: no division by zero"


def test_errors_of_the_first_process_come_through() -> None:
    def fail() -> None:
        raise FileNotFoundError("nothing there")

    with pytest.raises(FileNotFoundError, match="nothing there"):
        from_rank_zero(fail)


def test_a_world_without_a_rendezvous_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    message = r"WORLD_SIZE=4, with no process group and without RANK, MASTER_ADDR, MASTER_PORT.*torchrun"
    with pytest.raises(RuntimeError, match=message), process_group("cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(RuntimeError, match=r"expected WORLD_SIZE to be a number of processes, got 'many'"):
        process_group("cpu").__enter__()


@pytest.mark.parametrize("given", ["2", "5", "first"])
def test_a_rank_that_the_world_does_not_have_is_refused_at_once(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    announced = {"WORLD_SIZE": "2", "RANK": given, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in announced.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=rf"expected RANK from 0 to 1 with WORLD_SIZE=2, got '{given}'"):
        process_group("cpu").__enter__()


def test_a_rank_alone_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert is_first_process()
    with process_group("cpu"):
        assert not is_grouped() and rank() == 0


def test_a_group_of_another_size_than_announced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with process_group("cpu", alone=True):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2, but the process group has 1"), process_group("cpu"):
            pass
        monkeypatch.setenv("WORLD_SIZE", "1")
        with process_group("cpu"):
            assert dist.get_world_size() == 1
        assert is_grouped(), "who did not make a group does not end it"


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [str(local_device(name)) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]
    monkeypatch.delenv("LOCAL_RANK")
    assert str(local_device("cuda")) == "cuda"
