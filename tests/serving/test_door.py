"""The door of a server: tokens, pages of other sites, other paths, and the form in which all are told."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from wamkit_client import Client, unpack
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from wamkit.cli.token import read_token
from wamkit.serving.config import ServerConfig
from wamkit.serving.server import Server

from .conftest import observation, serving
from .test_server import get, raw


def kind(told: tuple[int, bytes]) -> tuple[int, str]:
    """Status and kind of an error over HTTP."""
    error = json.loads(told[1])
    assert error["error"].startswith("expected ")
    return told[0], error["kind"]


def test_this_machine_alone_by_default() -> None:
    assert ServerConfig().host == "127.0.0.1"


def test_a_token_opens_the_door() -> None:
    with serving(token="s3cret") as server:
        for path in ("/healthz", "/health", "/", "/page/live.js"):
            assert get(server, path)[0] == 200, "nothing of robots"
        for path in ("/metrics", "/live", "/config", "/act", "/predict"):
            assert kind(get(server, path)) == (401, "unauthorized")
            assert get(server, path, Authorization="Bearer wrong")[0] == 401
        assert get(server, "/metrics", Authorization="Bearer s3cret")[0] == 200
        for wrong in (None, "wrong", "s3cre"):
            with pytest.raises(PermissionError, match="Authorization: Bearer TOKEN"):
                Client(server.url, token=wrong)
        with pytest.raises(InvalidStatus, match="401"), connect(f"{server.url}/vla-eval"):
            pass
        with Client(server.url, token="s3cret") as client:
            assert client.infer(observation())["actions"].shape == (1, 3)
        # what openpi's clients say
        with connect(server.url, additional_headers={"Authorization": "Api-Key s3cret"}) as connection:
            assert unpack(connection.recv())["server"] == "wamkit"


@pytest.mark.parametrize("token", ["", "schlüssel", "two\nlines"])
def test_tokens_that_no_header_can_hold_are_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token of printable ASCII"):
        ServerConfig(token=token)


def test_pages_of_other_sites_may_not_talk_to_it(server: Server) -> None:
    assert kind(get(server, "/live", Origin="https://evil.example")) == (403, "forbidden")
    assert get(server, "/live", Origin=server.address)[0] == 200
    with pytest.raises(InvalidStatus, match="403"), connect(server.url, origin="https://evil.example"):
        pass


def test_what_another_page_embeds_is_refused(server: Server) -> None:
    assert kind(get(server, "/live", **{"Sec-Fetch-Site": "cross-site"})) == (403, "forbidden")
    assert get(server, "/live", **{"Sec-Fetch-Site": "same-origin"})[0] == 200
    assert get(server, "/live", **{"Sec-Fetch-Site": "none"})[0] == 200
    assert get(server, "/", **{"Sec-Fetch-Site": "cross-site"})[0] == 200, "a link to the live page"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("LocalHost", 200),
        ("robot.localhost:80", 200),
        ("192.168.0.7:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("notlocalhost", 403),
        ("127.0.0.1.evil.example", 403),
        ("[::1", 403),
    ],
)
def test_a_server_of_this_machine_alone_is_asked_under_its_name(server: Server, host: str, status: int) -> None:
    assert get(server, "/live", Host=host)[0] == status
    if status == 403:
        told = get(server, "/live", Host=host, Origin=f"http://{host}")
        assert kind(told) == (403, "forbidden")


def test_a_name_that_was_asked_for_is_a_name() -> None:
    with serving(host="localhost", token="s3cret") as server:
        assert get(server, "/live", Host="robots.example", Authorization="Bearer s3cret")[0] == 200
    with serving(host="0.0.0.0") as server:
        assert get(server, "/live", Host="robots.example")[0] == 200
    told = "ask for that, or set a token"
    with serving(host="localhost") as server:
        assert told in json.loads(get(server, "/act", Host="evil.example")[1])["error"]


def test_a_websocket_elsewhere_is_not_there(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidStatus) as error, connect(f"{server.url}/nope"):
        pass
    response = error.value.response
    assert response.status_code == 404 and response.body == (
        b"expected a WebSocket at / or /vla-eval, got '/nope'; correct the path\n"
    )
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_body_that_does_not_come_is_told_as_json() -> None:
    with serving(transfer_s=0.3) as server, raw(server) as connection:
        connection.sendall(b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert kind(answer(connection)) == (408, "request_timeout")


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body, from a connection that is closed behind them."""
    data = b""
    while part := connection.recv(1 << 16):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_a_token_of_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAMKIT_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("WAMKIT_TOKEN", "s3cret\n")
    assert read_token(None) == "s3cret"
    file = tmp_path / "token"
    file.write_text("other\n")
    assert read_token(file) == "other"


@pytest.mark.parametrize("text", [b"", b" \n", b"two\nlines", "schl\u00fcssel".encode(), b"\xff\xfe\x00"])
def test_a_token_that_is_none_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    file = tmp_path / "token"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=rf"printable ASCII characters in {file}, got (nothing|something else); write"):
        read_token(file)
    if b"\x00" not in text:
        monkeypatch.setenv("WAMKIT_TOKEN", text.decode())
        with pytest.raises(ValueError, match="in the environment variable WAMKIT_TOKEN, got"):
            read_token(None)
