"""Codecs found by the type in their folder."""

from pathlib import Path

import pytest
import torch

from wamkit.codecs.load import load_image_tokenizer, load_text_encoder, load_video_codec
from wamkit.codecs.patch import PatchCodec, PatchCodecConfig
from wamkit.codecs.text_hash import HashedTextEncoder


def test_folders_are_loaded_by_their_type(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8, generator=generator)
    config = PatchCodecConfig(patch=4, temporal=1, channels=6)
    codec = PatchCodec.fit(frames, config=config, generator=generator)
    codec.save(tmp_path / "video")
    HashedTextEncoder(width=8, length=3).save(tmp_path / "text")
    assert torch.equal(load_video_codec(tmp_path / "video").encode_frames(frames), codec.encode_frames(frames))
    assert load_text_encoder(tmp_path / "text").encode(["open it"]).tokens.shape == (1, 3, 8)
    with pytest.raises(ValueError, match="unknown video codec 'text_hash'; known are 'patch' and 'ltx'"):
        load_video_codec(tmp_path / "text")
    with pytest.raises(ValueError, match="unknown text encoder 'patch'; known are 'text_hash' and 'text_t5'"):
        load_text_encoder(tmp_path / "video")
    with pytest.raises(ValueError, match="unknown image tokeniser 'patch'; known are 'patch_vq' and 'image_vq'"):
        load_image_tokenizer(tmp_path / "video")


def test_missing_or_unreadable_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json there"):
        load_video_codec(tmp_path)
    for content, message in (
        ("{", "is damaged"),
        ("[]", "expected a JSON object, got list"),
        ("{}", "expected the codec's type under 'type', got None; copy the policy folder again"),
        ('{"type": {}}', "expected the codec's type under 'type', got {}"),
        ('{"type": "text_hash", "version": 1, "width": "8"}', "expected width as a whole number, got .8.; copy"),
        ('{"type": "text_hash", "version": 1, "width": 8}', "expected length as a whole number, got null; copy"),
        ('{"type": "text_hash", "version": 1, "width": 8, "length": -1}', "1 or more, got 8 and -1; copy"),
        ('{"type": "text_t5", "version": 1, "source": {"root": "/"}, "length": 2}', "missing: files; copy"),
        (
            '{"type": "text_t5", "version": 1, "source": {"root": "/", "files": {}}, "length": 2, "dtype": "nn"}',
            "expected dtype as the name of a type",
        ),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
            load_text_encoder(tmp_path)
