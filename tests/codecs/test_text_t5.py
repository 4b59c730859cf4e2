"""The T5 encoder: a tiny random one and a small trained vocabulary, written in the published folder layout."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from wamkit.codecs.base import TextEncoder
from wamkit.codecs.load import load_text_encoder
from wamkit.codecs.text_t5 import T5TextEncoder

CORPUS = [
    "open the drawer",
    "close the door of the oven",
    "put the red block on the table",
    "push the green button and pick up the blue cup",
]


def random_encoder(vocab_size: int = 200) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocab_size,
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return T5EncoderModel(config)


def write_tokenizer(folder: Path) -> None:
    """A sentencepiece model in the layout of LTX-Video: pieces, with T5's pad, end and unknown ids."""
    import sentencepiece

    folder.mkdir(parents=True)
    (folder / "corpus.txt").write_text("\n".join(CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "corpus.txt").unlink()
    (folder / "spiece.vocab").unlink()
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ltx-video")
    write_tokenizer(root / "tokenizer")
    random_encoder().save_pretrained(root / "text_encoder", max_shard_size="10KB")
    return root


@pytest.fixture(scope="module")
def t5(folder: Path) -> T5TextEncoder:
    return T5TextEncoder.from_pretrained(folder, length=20)


def test_weights_in_shards_are_read_whole(folder: Path, t5: T5TextEncoder) -> None:
    files = sorted(path.name for path in (folder / "text_encoder").iterdir())
    assert "model.safetensors.index.json" in files and len(files) > 3
    expected = random_encoder().state_dict()
    loaded = t5.encoder.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_shapes_masks_and_end_token(t5: T5TextEncoder) -> None:
    assert isinstance(t5, TextEncoder)
    assert (t5.length, t5.width) == (20, 16)
    encoded = t5.encode(["open the drawer", "", "push the button " * 30])
    assert encoded.tokens.shape == (3, 20, 16)
    counts = encoded.mask.sum(dim=1).tolist()
    assert 1 < counts[0] < 20 and counts[1] == 1 and counts[2] == 20
    assert (encoded.mask.int().diff(dim=1) <= 0).all()  # words first, padding after
    ids = t5.tokenizer("push the button " * 30, truncation=True, max_length=20).input_ids
    assert ids[-1] == t5.tokenizer.eos_token_id
    assert t5.tokenizer.unk_token_id not in t5.tokenizer("open the drawer").input_ids


def test_default_length_is_the_published_one(folder: Path) -> None:
    assert T5TextEncoder.from_pretrained(folder).encode(["open the drawer"]).tokens.shape == (1, 128, 16)


def test_padding_takes_part_in_the_encoder(t5: T5TextEncoder) -> None:
    batch = t5.tokenizer(["open the drawer"], padding="max_length", max_length=20, return_tensors="pt")
    with torch.no_grad():
        without_mask = t5.encoder(input_ids=batch.input_ids).last_hidden_state
        with_mask = t5.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    encoded = t5.encode(["open the drawer"])
    torch.testing.assert_close(encoded.tokens, without_mask)
    assert torch.equal(encoded.mask, batch.attention_mask.bool())
    assert (encoded.tokens[:, :3] - with_mask[:, :3]).abs().max() > 1e-3


def test_each_sentence_is_computed_once(folder: Path) -> None:
    t5 = T5TextEncoder.from_pretrained(folder, length=12, batch_size=2)
    rows: list[int] = []
    t5.encoder.register_forward_pre_hook(
        lambda _module, args, kwargs: rows.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    first = t5.encode(["open the drawer", "close the door", "open the drawer", "push the button"])
    assert rows == [2, 1]
    again = t5.encode(["push the button", "open the drawer"])
    assert rows == [2, 1]
    assert torch.equal(again.tokens, first.tokens[[3, 0]]) and torch.equal(again.mask, first.mask[[3, 2]])
    again.tokens.zero_()
    assert t5.encode(["open the drawer"]).tokens.abs().sum() > 0
    assert t5.encode([]).tokens.shape == (0, 12, 16)


def test_a_full_cache_forgets_the_oldest(folder: Path) -> None:
    loaded = T5TextEncoder.from_pretrained(folder, length=12)
    t5 = T5TextEncoder(loaded.encoder, loaded.tokenizer, length=12, cache_size=2)
    calls: list[int] = []
    t5.encoder.register_forward_hook(lambda *_: calls.append(1))
    for sentence in ("open", "close", "open", "push", "open", "close"):
        t5.encode([sentence])
    assert len(calls) == 4  # "close" went when "push" came
    assert t5.encode(["a", "b", "c", "d"]).tokens.shape == (4, 12, 16)  # more at once than the cache holds


def test_batches_do_not_change_the_tokens(folder: Path, t5: T5TextEncoder) -> None:
    single = T5TextEncoder.from_pretrained(folder, length=20, batch_size=1)
    torch.testing.assert_close(single.encode(CORPUS).tokens, t5.encode(CORPUS).tokens, atol=1e-5, rtol=1e-5)


def test_bfloat16_is_offered_and_float16_refused(folder: Path, t5: T5TextEncoder) -> None:
    half = T5TextEncoder.from_pretrained(folder, length=20, dtype=torch.bfloat16)
    tokens = half.encode(["open the drawer"]).tokens
    assert tokens.dtype == torch.bfloat16
    assert (tokens.float() - t5.encode(["open the drawer"]).tokens).abs().max() < 0.2
    with pytest.raises(ValueError, match="float16 overflows"):
        T5TextEncoder.from_pretrained(folder, dtype=torch.float16)


def test_saved_encoder_refers_to_its_weights(folder: Path, t5: T5TextEncoder, tmp_path: Path) -> None:
    t5.save(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["config.json"]
    loaded = load_text_encoder(tmp_path)
    assert isinstance(loaded, T5TextEncoder) and loaded.length == 20
    assert torch.equal(loaded.encode(CORPUS).tokens, t5.encode(CORPUS).tokens)
    with pytest.raises(FileNotFoundError, match="say where they are now"):
        load_text_encoder(tmp_path, pretrained=tmp_path)
    with pytest.raises(ValueError, match="built in memory"):
        T5TextEncoder(t5.encoder, t5.tokenizer).save(tmp_path)


def test_missing_or_damaged_folders_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer/ with spiece\.model.*text_encoder/ with config\.json"):
        T5TextEncoder.from_pretrained(tmp_path)
    write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(FileNotFoundError, match=r"missing: text_encoder/ with config\.json; text_encoder/ with \*"):
        T5TextEncoder.from_pretrained(tmp_path)
    encoder = random_encoder()
    encoder.save_pretrained(tmp_path / "text_encoder")
    weights = tmp_path / "text_encoder" / "model.safetensors"
    state = load_file(weights)
    key = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file({name: tensor for name, tensor in state.items() if name != key}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing_keys: .*block\.1\.layer\.0\.SelfAttention\.q"):
        T5TextEncoder.from_pretrained(tmp_path)
    save_file({**state, key: state[key] * float("inf")}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"text_encoder: expected finite weights, got .* in encoder\.block\.1\.layer"):
        T5TextEncoder.from_pretrained(tmp_path)
    save_file(state, weights, metadata={"format": "pt"})
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match="truncated or damaged"):
        T5TextEncoder.from_pretrained(tmp_path)
    random_encoder(vocab_size=20).save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(ValueError, match="the encoder has 20 embeddings"):
        T5TextEncoder.from_pretrained(tmp_path)


def test_a_tokenizer_that_knows_no_words_is_refused(t5: T5TextEncoder, folder: Path) -> None:
    from transformers import T5Tokenizer

    broken = T5Tokenizer(vocab_file=str(folder / "tokenizer" / "spiece.model"))
    with pytest.raises(ValueError, match="does not know the words"):
        T5TextEncoder(t5.encoder, broken)
    with pytest.raises(ValueError, match="of 1 or more, got 0"):
        T5TextEncoder(t5.encoder, t5.tokenizer, length=0)


def test_a_saved_tokenizer_json_is_read_too(t5: T5TextEncoder, folder: Path, tmp_path: Path) -> None:
    t5.tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text_encoder").symlink_to(folder / "text_encoder")
    assert not (tmp_path / "tokenizer" / "spiece.model").exists()
    loaded = T5TextEncoder.from_pretrained(tmp_path, length=20)
    assert loaded.tokenizer(CORPUS[0]).input_ids == t5.tokenizer(CORPUS[0]).input_ids
