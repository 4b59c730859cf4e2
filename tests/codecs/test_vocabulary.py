"""Every id from its name, whatever the order of the vocabulary."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from wamkit.codecs.text_tokens import (
    ByteTokenizer,
    PublishedTokenizer,
    TextTokenizer,
    WordTokenizer,
    find_tokenizer,
    load_text_tokenizer,
)
from wamkit.codecs.vocabulary import PLACEHOLDER_IDS, VocabSpec, image_name, published_names


def test_published_ids() -> None:
    """The table of WorldVLA 2.3 of the specification."""
    spec = VocabSpec.from_vocabulary(published_names())
    assert (spec.begin, spec.pad) == (0, 1)
    assert (min(spec.image), max(spec.image)) == (4, 8195)
    assert (spec.end_image, spec.begin_image, spec.end_turn, spec.row_end) == (8196, 8197, 8710, 8803)
    assert (spec.grid_id(256), spec.grid_id(512)) == (8812, 8820)
    assert (spec.begin_action, spec.action[0], spec.action[-1], spec.end_action) == (10004, 10006, 10261, 15004)
    assert (spec.begin_state, spec.state[0], spec.end_state) == (15504, 15506, 16004)


def test_code_map_is_the_identity_both_ways_in_a_shuffled_vocabulary() -> None:
    """Check 3."""
    names = list(published_names())
    ids = list(range(len(names)))
    random.Random(0).shuffle(ids)
    vocabulary = dict(zip(names, ids, strict=True))
    spec = VocabSpec.from_vocabulary(vocabulary)
    codes = torch.arange(8192)
    assert torch.equal(spec.code_of_id[spec.id_of_code[codes]], codes)
    assert spec.image[1047] == vocabulary["IMGIMGBAEHZ"]
    assert (spec.code_of_id >= 0).sum() == 8192


def test_the_code_map_is_no_offset() -> None:
    spec = VocabSpec.from_vocabulary(published_names())
    assert spec.image[10] != spec.image[0] + 10
    assert image_name(10) == "IMGIMGBAZ"


def test_what_is_missing_is_named() -> None:
    names = {name: place for name, place in published_names().items() if name != "<racm3:break>"}
    with pytest.raises(ValueError, match=r"1 names are missing: <racm3:break>; give the tokenizer that belongs"):
        VocabSpec.from_vocabulary(names)
    with pytest.raises(ValueError, match=r"9216 image codes"):
        VocabSpec.from_vocabulary(published_names(), num_codes=9216)
    twice = published_names() | {"<racm3:break>": 5}
    with pytest.raises(ValueError, match="distinct ids"):
        VocabSpec.from_vocabulary(twice)


def test_a_vocabulary_that_does_not_fit_the_weights_is_refused() -> None:
    spec = VocabSpec.from_vocabulary(ByteTokenizer().vocabulary)
    spec.check_fit(16400, num_codes=8192)
    with pytest.raises(ValueError, match=r"at most 16000 ids, the weights', .* got 16261 ids"):
        spec.check_fit(16000, num_codes=8192)
    with pytest.raises(ValueError, match="1024 image codes"):
        spec.check_fit(16400, num_codes=1024)


def test_placeholders_do_not_count() -> None:
    names = published_names() | {"<|image|>": PLACEHOLDER_IDS, "<|action|>": PLACEHOLDER_IDS + 1}
    assert VocabSpec.from_vocabulary(names).size == 16005


@pytest.mark.parametrize("size", [0, 100, 4096])
def test_image_sizes_that_no_grid_count_says(size: int) -> None:
    with pytest.raises(ValueError, match="in steps of 32"):
        VocabSpec.from_vocabulary(published_names()).grid_id(size)


def test_words_and_bytes() -> None:
    words = WordTokenizer(num_codes=64)
    assert words.encode("Open the Drawer!") == words.encode("open  the drawer")
    assert len(words.encode("What action should the robot take to open the drawer?")) == 10
    spec = VocabSpec.from_vocabulary(words.vocabulary, num_codes=64)
    assert all(0 <= token < spec.size and spec.code_of_id[token] < 0 for token in words.encode("open the drawer"))
    tokens = ByteTokenizer().encode("ab")
    assert [token - 16005 for token in tokens] == [97, 98]
    with pytest.raises(ValueError, match="1 or more"):
        WordTokenizer(num_codes=0)


def published_file(folder: Path) -> Path:
    """A tokenizer in the published format: whole words, Chameleon's names and some placeholders."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {word: 16005 + place for place, word in enumerate(("open", "the", "drawer"))}
    tokenizer = Tokenizer(WordLevel(published_names() | words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "text_tokenizer.json"))
    return folder / "text_tokenizer.json"


def test_the_published_file(tmp_path: Path) -> None:
    file = published_file(tmp_path / "chameleon" / "tokenizer")
    assert find_tokenizer(tmp_path) == file
    tokenizer = PublishedTokenizer(file)
    assert tokenizer.encode("open the box") == [16005, 16006, 3]
    assert VocabSpec.from_vocabulary(tokenizer.vocabulary).begin_image == 8197
    file.unlink()
    tokenizer.save(tmp_path / "saved")
    assert load_text_tokenizer(tmp_path / "saved").encode("open") == [16005]


def test_published_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Chameleon's tokenizer"):
        PublishedTokenizer(tmp_path / "no.json")
    with pytest.raises(FileNotFoundError, match=r"text_tokenizer\.json"):
        find_tokenizer(tmp_path)
    (tmp_path / "text_tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        PublishedTokenizer(tmp_path / "text_tokenizer.json")


@pytest.mark.parametrize("tokenizer", [WordTokenizer(num_codes=16, num_words=32), ByteTokenizer(num_codes=16)])
def test_saved_and_loaded(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_text_tokenizer(tmp_path)
    assert loaded.vocabulary == tokenizer.vocabulary
    assert loaded.encode("open it") == tokenizer.encode("open it")


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_text_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"type": "text_hash", "version": 1}')
    with pytest.raises(ValueError, match="unknown tokenizer 'text_hash'"):
        load_text_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"type": "text_words", "version": 1, "num_codes": 16}')
    with pytest.raises(ValueError, match="num_words"):
        load_text_tokenizer(tmp_path)
