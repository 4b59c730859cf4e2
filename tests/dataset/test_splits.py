"""Episodes are split as the specification says: by task first, then within each task."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wamkit.data.layout import EpisodeRecord
from wamkit.data.mixture import MixedEntry
from wamkit.data.splits import PARTS, Splits, split_episodes
from wamkit.data.synthetic import MemoryEntry
from wamkit.data.task_names import sentence_of, task_name


def entries(counts: dict[str, int]) -> list[MemoryEntry]:
    """The episodes of some tasks, task by task in the order given."""
    sentences = [sentence for sentence, count in counts.items() for _ in range(count)]
    return [MemoryEntry(index=index, length=5, task=sentence) for index, sentence in enumerate(sentences)]


def record(index: int, task: str, **metadata: Any) -> EpisodeRecord:
    return EpisodeRecord(index=index, length=5, task=task, tasks=(task,), metadata=metadata)


def test_the_numbers_of_the_specification() -> None:
    splits = split_episodes(entries({f"task {letter}": 42 for letter in "abcdefghij"}))
    assert (len(splits.train), len(splits.val_ind), len(splits.val_ood)) == (9 * 38, 9 * 4, 42)
    assert splits.val_ood == tuple(range(9 * 42, 10 * 42))
    assert splits.val_ind[:5] == (38, 39, 40, 41, 80)
    assert splits.all == tuple(range(420)) and sorted(splits.train + splits.val_ind + splits.val_ood) == [*range(420)]


def test_text_order_holds_out_other_episodes_than_numeric_order() -> None:
    fifty = entries({f"task {letter}": 50 for letter in "abcdefghij"})
    numeric, text = split_episodes(fifty), split_episodes(fifty, legacy_lexicographic=True)
    for number in range(9):
        ours = [index - 50 * number for index in numeric.val_ind if index // 50 == number]
        theirs = [index - 50 * number for index in text.val_ind if index // 50 == number]
        assert (ours, theirs) == ([45, 46, 47, 48, 49], [5, 6, 7, 8, 9])
    assert text.val_ood == numeric.val_ood and text.all == numeric.all


@pytest.mark.parametrize("legacy", [False, True])
def test_the_parts_share_nothing_and_make_the_whole(legacy: bool) -> None:
    for tasks in range(1, 24):
        counts = {f"task {number:02d}": 1 + (7 * number) % 13 for number in range(tasks)}
        known = entries(counts)
        splits = split_episodes(known, legacy_lexicographic=legacy)
        parts = [set(splits.part(name)) for name in PARTS]
        assert parts[0] | parts[1] | parts[2] == parts[3] == {entry.index for entry in known}
        assert sum(map(len, parts[:3])) == len(parts[3])
        names = sorted(counts)[: math.ceil(9 * tasks / 10)]
        assert {known[index].task for index in splits.train} == set(names)
        assert {known[index].task for index in splits.val_ood} == set(counts) - set(names)
        assert len(splits.train) == sum(-(-9 * counts[name] // 10) for name in names)


def test_small_datasets_leave_parts_empty() -> None:
    assert split_episodes(entries({"push": 1})) == Splits(train=(0,), val_ind=(), val_ood=())
    assert split_episodes(entries({"push": 10})) == Splits(train=tuple(range(9)), val_ind=(9,), val_ood=())
    nine = dict.fromkeys("abcdefghi", 9)
    assert split_episodes(entries(nine)) == Splits(train=tuple(range(81)), val_ind=(), val_ood=())
    assert split_episodes(entries(nine | {"j": 9})).val_ood == tuple(range(81, 90))


def test_episodes_keep_the_numbers_that_they_have() -> None:
    known = [entry for entry in entries({"b": 15, "a": 15}) if entry.index not in (0, 7, 20)][::-1]
    splits = split_episodes(known)
    assert splits.all == tuple(sorted(entry.index for entry in known))
    assert (splits.val_ind, splits.val_ood) == ((14, 29), ()), "the last of each task, whatever is missing before it"


def test_no_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="splits: expected episodes, got none"):
        split_episodes([])


SUITES = {
    "pick up the black bowl on the wooden cabinet and place it on the plate": (
        "pick up the black bowl between the plate and the ramekin and place it on the plate",
        "pick up the black bowl next to the ramekin and place it on the plate",
        "pick up the black bowl from table center and place it on the plate",
        "pick up the black bowl on the cookie box and place it on the plate",
        "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate",
        "pick up the black bowl on the ramekin and place it on the plate",
        "pick up the black bowl next to the cookie box and place it on the plate",
        "pick up the black bowl on the stove and place it on the plate",
        "pick up the black bowl next to the plate and place it on the plate",
    ),
    "pick up the tomato sauce and place it in the basket": tuple(
        f"pick up the {thing} and place it in the basket"
        for thing in (
            *("alphabet soup", "cream cheese", "salad dressing", "bbq sauce", "ketchup"),
            *("butter", "milk", "chocolate pudding", "orange juice"),
        )
    ),
    "turn on the stove": (
        *("open the middle drawer of the cabinet", "put the bowl on the stove", "put the bowl on the plate"),
        *("put the wine bottle on top of the cabinet", "open the top drawer and put the bowl inside"),
        *("put the bowl on top of the cabinet", "push the plate to the front of the stove"),
        *("put the cream cheese in the bowl", "put the wine bottle on the rack"),
    ),
}


@pytest.mark.parametrize("held_out", SUITES)
def test_libero_holds_out_the_published_tasks(held_out: str) -> None:
    known = entries(dict.fromkeys((held_out, *SUITES[held_out]), 2))
    assert {known[index].task for index in split_episodes(known).val_ood} == {held_out}


def test_of_the_long_suite_the_scenes_decide() -> None:
    long = (
        "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it",
        *("STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_back_compartment_of_the_caddy",),
        *(f"LIVING_ROOM_SCENE{number}_put_the_white_mug_on_the_left_plate" for number in range(1, 9)),
    )
    known = [record(number, sentence_of(name), bddl_file=f"{name}.bddl") for number, name in enumerate(long)]
    assert [known[index].task for index in split_episodes(known).val_ood] == [
        "pick up the book and place it in the back compartment of the caddy"
    ]
    without = [record(entry.index, f"{entry.task} {entry.index}") for entry in known]
    assert [without[index].task for index in split_episodes(without).val_ood] == [
        "turn on the stove and put the moka pot on it 0"
    ]


def test_a_task_is_called_as_its_recorder_called_it() -> None:
    assert task_name(record(0, " open the drawer ")) == "open_the_drawer"
    assert task_name(record(0, "x", file="KITCHEN_SCENE1_open_it_demo.hdf5")) == "KITCHEN_SCENE1_open_it"
    assert task_name(record(0, "lift the cube", file="image.hdf5")) == "lift_the_cube"
    assert task_name(record(0, "x", file="a_demo.hdf5", bddl_file="STUDY_SCENE2_b.bddl")) == "STUDY_SCENE2_b"
    assert task_name(record(0, "x", task_folder="LIVING ROOM SCENE2 c")) == "LIVING_ROOM_SCENE2_c"
    assert task_name(MixedEntry(index=0, length=1, task="open it", part=0, own_index=0)) == "open_it"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("KITCHEN_SCENE10_turn_on_the_stove", "turn on the stove"),
        ("LIVING_ROOM_SCENE2_put_it", "put it"),
        ("KITCHEN SCENE3 turn on the stove", "turn on the stove"),
        ("open_the_drawer", "open the drawer"),
        ("SCENE3_alone", "SCENE3 alone"),
    ],
)
def test_a_name_spells_its_sentence(name: str, sentence: str) -> None:
    assert sentence_of(name) == sentence
