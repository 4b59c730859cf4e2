"""The hashed text encoder: fixed numbers, masks, and sentences that must or must not be told apart."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from wamkit.codecs.base import TextEncoder
from wamkit.codecs.text_hash import HashedTextEncoder, hashed_vector, split_words


def test_vectors_are_the_same_on_every_machine() -> None:
    # Written down once; a change here breaks every trained policy and needs a new FORMAT_VERSION.
    assert hashed_vector("word:drawer", 8).tolist() == [0.5, -1.0, -0.5, -0.5, -1.5, -3.0, 0.0, 0.5]
    assert hashed_vector("word:drawer", 4).tolist() == hashed_vector("word:drawer", 8)[:4].tolist()


def test_entries_look_gaussian_and_words_are_nearly_orthogonal() -> None:
    vectors = np.stack([hashed_vector(f"word:{index}", 64) for index in range(500)])
    assert abs(vectors.mean()) < 0.02 and abs(vectors.std() - 1.0) < 0.02
    assert abs((vectors**4).mean() - 3.0) < 0.25  # a sum of 16 bits: 3 - 2/16
    cosines = vectors @ vectors.T / 64
    off_diagonal = cosines[~np.eye(500, dtype=bool)]
    assert abs(off_diagonal.std() - 1 / 8) < 0.01 and np.abs(off_diagonal).max() < 0.75


def test_case_punctuation_and_spacing_do_not_matter() -> None:
    encoder = HashedTextEncoder()
    encoded = encoder.encode(["open the drawer", "  Open, the\tDRAWER!!"])
    assert torch.equal(encoded.tokens[0], encoded.tokens[1])
    assert split_words("pick-place_v3: the robot's Ünlü 2nd") == [
        "pick",
        "place",
        "v3",
        "the",
        "robot",
        "s",
        "ünlü",
        "2nd",
    ]


def test_order_and_words_matter() -> None:
    encoder = HashedTextEncoder()
    a, b, c = encoder.encode(["push the red block", "push red the block", "push the blue block"]).tokens
    assert not torch.equal(a, b)
    assert torch.equal(a[:2], c[:2]) and torch.equal(a[3], c[3]) and not torch.equal(a[2], c[2])


def test_a_word_resembles_itself_elsewhere_more_than_another_word_there() -> None:
    rows = HashedTextEncoder().encode(["drawer open", "the drawer"]).tokens
    same = torch.nn.functional.cosine_similarity(rows[0, 0], rows[1, 1], dim=0)
    other = torch.nn.functional.cosine_similarity(rows[0, 1], rows[1, 1], dim=0)
    assert same > 0.5 > other + 0.1


def test_mask_marks_the_words_and_padding_is_zero() -> None:
    encoded = HashedTextEncoder(width=8, length=4).encode(["close it", "a b c d e f"])
    assert encoded.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert encoded.tokens.shape == (2, 4, 8) and encoded.tokens.dtype == torch.float32
    assert (encoded.tokens[0, 2:] == 0).all()


@pytest.mark.parametrize("sentence", ["", "   ", "?!", "\u200b"])
def test_a_sentence_without_words_has_one_token(sentence: str) -> None:
    encoder = HashedTextEncoder()
    encoded = encoder.encode([sentence, "empty"])
    assert encoded.mask.sum(dim=1).tolist() == [1, 1]
    assert not torch.equal(encoded.tokens[0], encoded.tokens[1])


def test_no_sentences_give_no_rows() -> None:
    encoded = HashedTextEncoder(width=8, length=4).encode([])
    assert encoded.tokens.shape == (0, 4, 8) and encoded.mask.shape == (0, 4)


def test_repeated_sentences_are_not_aliased() -> None:
    encoder = HashedTextEncoder()
    first = encoder.encode(["open the door"]).tokens
    first.zero_()
    assert encoder.encode(["open the door"]).tokens.abs().sum() > 0


def test_folder_round_trip_and_refusals(tmp_path: Path) -> None:
    encoder = HashedTextEncoder(width=24, length=5)
    assert isinstance(encoder, TextEncoder)
    encoder.save(tmp_path)
    loaded = HashedTextEncoder.load(tmp_path)
    assert torch.equal(loaded.encode(["turn the faucet"]).tokens, encoder.encode(["turn the faucet"]).tokens)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "type": "text_t5"}))
    with pytest.raises(ValueError, match="expected type 'text_hash' and version 1, got 'text_t5'"):
        HashedTextEncoder.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json of a 'text_hash' codec in"):
        HashedTextEncoder.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="1 or more"):
        HashedTextEncoder(width=0)
