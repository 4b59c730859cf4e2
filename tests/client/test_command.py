"""What `wamkit client` says, of a server with a certificate and of how to ask it."""

from __future__ import annotations

from pathlib import Path

import pytest

from wamkit.cli.client import _lines
from wamkit.cli.main import main

from ..serving.conftest import serving

TOLD = {
    "server_version": "1",
    "family": "wav",
    "robot": "r",
    "identity": {},
    "send": "…",
    "action": ["x"],
    "action_dim": 1,
    "action_kind": "absolute",
    "action_horizon": 18,
    "execution_horizon": 8,
    "control_hz": 80.0,
    "planner": None,
    "num_inference_steps": 3,
    "tasks": [],
}


@pytest.mark.parametrize(
    ("answer_ms", "advice"),
    [
        (112.0, "RealTimeChunks: answers take less than half of action_horizon (112 ms at 80 Hz)"),
        (144.0, "ChunkBroker: answers take longer than half of action_horizon (112 ms at 80 Hz)"),
        (144.0, "144 ms after every 100 ms of moving (execution_horizon)"),
    ],
)
def test_it_says_whether_to_ask_ahead(answer_ms: float, advice: str) -> None:
    lines = _lines("ws://x", TOLD, {"total": {"median": 1.0, "p95": answer_ms}}).splitlines()
    assert advice in lines[-1]
    assert "action_horizon 18, of which execution_horizon 8 are meant to be run" in lines[2]


def test_it_trusts_what_ssl_cert_file_names(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(certificate=certificate[0], key=certificate[1]) as server:
        assert main(["client", server.url, "--calls", "0"]) == 2
        assert "certificate" in capsys.readouterr().err
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert main(["client", server.url, "--calls", "1"]) == 0
        assert "ms median" in capsys.readouterr().out
