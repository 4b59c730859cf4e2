"""The weighted loss by hand, its shares, and the continuous head's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wamkit.draws import TrainingDraws
from wamkit.models.worldvla import config as sizes
from wamkit.models.worldvla.losses import id_weights, loss_shares, losses, prompt_positions, weighted_mean
from wamkit.models.worldvla.objective import WorldVLAObjective, action_only, world_only
from wamkit.models.worldvla.sequence import IGNORED, TokenBatch
from wamkit.training.stage import TrainStage

from .worldvla_cases import TASK, Case, make_case, published_layout

PLAIN = WorldVLAObjective(z_loss=0.0)


def draws(rows: int) -> TrainingDraws:
    return TrainingDraws(key=(0,), rows=range(rows), num_rows=rows)


def batch_of(case: Case, is_world: list[bool]) -> TokenBatch:
    samples = []
    for row, imagines in enumerate(is_world):
        actions = case.actions(case.config.action_horizon, seed=row)
        views = case.config.num_views
        if imagines:
            question = case.builder.world_prompt(case.codes(1, views, seed=row), actions[:1])
            samples.append((question, case.builder.world_answer(case.codes(views, seed=row + 9))))
        else:
            state = case.state(row) if case.config.reads_state else None
            question = case.builder.action_prompt(TASK + "!" * row, case.codes(2, views, seed=row), state)
            samples.append((question, case.builder.action_answer(actions)))
    return case.builder.batch(samples, torch.tensor(is_world))


def test_weights_of_ids() -> None:
    """Check 7: which ids weigh 0.04."""
    vocabulary = make_case().vocabulary
    weights = id_weights(vocabulary, 16400, PLAIN)
    assert weights[[4, 100, 8195]].tolist() == pytest.approx([0.04] * 3)
    assert weights[[3, 8196, 8197, 8803, 8812, 10004, 10133, 8710]].tolist() == [1.0] * 8
    reference = id_weights(vocabulary, 16400, WorldVLAObjective(reference_weights=True))
    assert reference[[3, 8194, 8195]].tolist() == pytest.approx([0.04, 0.04, 1.0])


def test_weighted_mean_by_hand() -> None:
    """Check 7: ten ids, three of them image codes."""
    vocabulary = make_case().vocabulary
    logits = torch.randn(10, 16400, generator=torch.Generator().manual_seed(0)).double()
    target = torch.tensor([8197, 8806, 8806, 4, 8195, 77, 8803, 8196, 10133, 8710])
    by_hand, total = 0.0, 0.0
    for row, token in enumerate(target.tolist()):
        weight = 0.04 if 4 <= token <= 8195 else 1.0
        by_hand += weight * float(-torch.log_softmax(logits[row], dim=0)[token])
        total += weight
    weights = id_weights(vocabulary, 16400, PLAIN)[target].double()
    found = weighted_mean(F.cross_entropy(logits, target, reduction="none"), weights)
    assert total == pytest.approx(7 + 3 * 0.04)
    assert float(found) == pytest.approx(by_hand / total, abs=1e-6)


@pytest.mark.parametrize(
    ("size", "horizon", "shares"),
    [
        (256, 5, (59.6, 13.3, 27.2)),
        (256, 10, (74.4, 8.4, 17.2)),
        (512, 5, (37.1, 33.0, 29.8)),
        (512, 10, (53.9, 24.2, 21.9)),
    ],
)
def test_shares(size: int, horizon: int, shares: tuple[float, ...]) -> None:
    """Check 7: the table of WorldVLA 3.1 of the specification, to 0.1 point."""
    found = loss_shares(published_layout(size, horizon), PLAIN)
    assert [100 * share for share in found.values()] == pytest.approx(shares, abs=0.1)


def test_the_loss_of_a_batch_is_what_the_formula_says() -> None:
    case = make_case()
    batch = batch_of(case, [False, True, False])
    objective = WorldVLAObjective(z_loss=0.01)
    total, parts = losses(case.network, case.config, case.vocabulary, batch, case.actions(3, 5), objective, draws(3))
    weighted = weights = squares = count = 0.0
    for row in range(3):  # each row alone, without padding
        length = int(batch.lengths[row])
        question_and_answer = batch.ids[row : row + 1, :length]
        mask = torch.ones(length, length).tril().bool()
        block = batch.block[row, :length]
        for i in range(length):
            for j in range(i):
                if block[i] >= 0 and block[j] >= 0 and block[i] != block[j]:
                    mask[i, j] = False
        logits = case.network.logits(case.network(question_and_answer, mask[None, None]))[0]
        for place in range(1, length):
            token = int(batch.labels[row, place])
            if token != IGNORED:
                weight = 0.04 if 4 <= token <= 8195 else 1.0
                weighted += weight * float(-torch.log_softmax(logits[place - 1], dim=0)[token])
                weights += weight
                squares += float(logits[place - 1].logsumexp(dim=0)) ** 2
                count += 1
    assert float(total) == pytest.approx(weighted / weights + 0.01 * squares / count, rel=1e-5)
    assert set(parts) == {"action_loss", "action_accuracy", "world_loss", "code_accuracy"}


def test_task_sum() -> None:
    case = make_case()
    batch = batch_of(case, [False, True])
    objective = dataclasses.replace(PLAIN, loss_mode="task_sum", alpha=0.5)
    total, parts = losses(case.network, case.config, case.vocabulary, batch, case.actions(2, 5), objective, draws(2))
    assert float(total) == pytest.approx(float(parts["action_loss"] + 0.5 * parts["world_loss"]), rel=1e-6)


def test_padding_changes_nothing() -> None:
    case = make_case()
    together = batch_of(case, [False, True])
    total = 0.0
    for row in range(2):
        alone = batch_of(case, [False, True])
        keep = int(alone.lengths[row])
        one = TokenBatch(
            **{
                name: getattr(alone, name)[row : row + 1, :keep]
                if getattr(alone, name).ndim == 2
                else getattr(alone, name)[row : row + 1]
                for name in ("ids", "labels", "lengths", "is_world", "block")
            }
        )
        objective = dataclasses.replace(PLAIN, loss_mode="task_sum", alpha=1.0)
        total += float(
            losses(case.network, case.config, case.vocabulary, one, case.actions(1, 5), objective, draws(1))[0]
        )
    objective = dataclasses.replace(PLAIN, loss_mode="task_sum", alpha=1.0)
    found = losses(case.network, case.config, case.vocabulary, together, case.actions(2, 5), objective, draws(2))[0]
    assert float(found) == pytest.approx(total, rel=1e-5)


def headed() -> Case:
    return make_case(sizes.tiny(has_head=True, num_views=2), loud=False)


def test_the_head_does_not_read_action_ids() -> None:
    """Check (a)."""
    case = headed()
    batch = batch_of(case, [False, False])
    edited = batch.ids.clone()
    starts = (batch.ids == case.vocabulary.begin_action).int().argmax(dim=1)
    for row in range(2):
        edited[row, starts[row] + 1] = case.vocabulary.action[3]
    assert case.network.action_head is not None
    from wamkit.masks import action_mask

    outputs = [
        case.network.action_head(
            case.network(ids, action_mask(batch.block)), prompt_positions(ids, case.vocabulary.begin_action)
        )
        for ids in (batch.ids, edited)
    ]
    assert not torch.equal(batch.ids, edited)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("is_world", [[True, True], [True, False]])
def test_world_samples_give_the_head_no_gradient(is_world: list[bool]) -> None:
    """Check (b)."""
    case = headed()
    case.network.requires_grad_(True)
    batch = batch_of(case, is_world)

    def gradients(actions: Tensor) -> dict[str, Tensor]:
        case.network.zero_grad()
        total, _ = losses(case.network, case.config, case.vocabulary, batch, actions, PLAIN, draws(2))
        total.backward()
        found = {name: item.grad.clone() for name, item in case.network.named_parameters() if item.grad is not None}
        return {name: gradient for name, gradient in found.items() if name.startswith("action_head.")}

    actions = case.actions(2, 5)
    moved = actions.clone()
    moved[0] += 5  # the world sample's
    one, other = gradients(actions), gradients(moved)
    assert one and all(torch.equal(one[name], other[name]) for name in one)
    if all(is_world):
        assert not any(gradient.any() for gradient in one.values())
    else:
        assert any(gradient.any() for gradient in one.values())


def test_the_head_reads_each_row_alone() -> None:
    """Check (c): prompts of different lengths in one batch."""
    case = headed()
    assert case.network.action_head is not None
    rows = [
        case.builder.action_prompt(TASK + " " + "x" * 7 * row, case.codes(1 + row % 2, 2), case.state())
        for row in range(3)
    ]
    from wamkit.models.worldvla.decode import prefill

    together = prefill(case.network, case.builder.prompts(rows, case.config.action_prompt_length), room=0)
    joint = case.network.action_head(together.hidden, together.visible)
    for place, row in enumerate(rows):
        alone = prefill(case.network, case.builder.prompts([row], len(row)), room=0)
        single = case.network.action_head(alone.hidden, alone.visible)
        assert torch.allclose(joint[place], single[0], atol=1e-6)


def test_residual_dropout_follows_the_draws() -> None:
    case = make_case()
    case.network.train()
    batch = batch_of(case, [False, True])

    def loss(key: int) -> float:
        own = TrainingDraws(key=(key,), rows=range(2), num_rows=2)
        return float(losses(case.network, case.config, case.vocabulary, batch, case.actions(2, 5), PLAIN, own)[0])

    assert loss(0) == loss(0) != loss(1)
    case.network.eval()
    assert loss(0) == loss(1)


@pytest.mark.parametrize(
    "changes",
    [{"world_share": 1.5}, {"loss_mode": "sum"}, {"image_weight": -1.0}, {"history_dropout": 2.0}, {"z_loss": -1e-5}],
)
@pytest.mark.usefixtures("types_unchecked")
def test_objectives_that_cannot_be(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(changes))}"):
        WorldVLAObjective(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "size", "missing"), [(0.1, 4, "world"), (0.9, 1, "action"), (0.5, 1, "world")])
def test_batches_that_cannot_be_divided(share: float, size: int, missing: str) -> None:
    objective = WorldVLAObjective(world_share=share)
    stage: dict[str, Any] = {"train": ("transformer",), "steps": 1, "learning_rate": 1e-3, "needs_future": True}
    with pytest.raises(ValueError, match=f"batches of {size} without {missing} samples"):
        TrainStage(name="joint", objective=objective, batch_size=size, **stage)
    for fits in (WorldVLAObjective(world_share=share), world_only(), action_only()):
        TrainStage(name="joint", objective=fits, batch_size=20, **stage)
