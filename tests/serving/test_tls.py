"""TLS: the same answers, connections that begin and end in time, and files that are none."""

from __future__ import annotations

import gc
import logging
import os
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from wamkit_client import Client, ConnectionLost

from wamkit.serving.config import ServerConfig
from wamkit.serving.server import Server, tls

from .conftest import alone, named, serving


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of this machine, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2"]
    subprocess.run(["openssl", "req", "-x509", *made, *names], check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def safe(files: tuple[Path, Path]) -> Iterator[Server]:
    with serving(certificate=files[0], key=files[1], transfer_s=0.5) as running:
        yield running


@pytest.fixture
def trust(files: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=files[0])


def connected(server: Server) -> socket.socket:
    host, _, port = server.address.removeprefix("https://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=8)


def test_the_same_answers(safe: Server, trust: ssl.SSLContext) -> None:
    assert safe.url.startswith("wss://") and safe.address.startswith("https://")
    with Client(safe.url, ssl=trust) as client:
        client.reset(seed=2)
        assert np.array_equal(client.infer(named())["actions"], alone([0], seed=2, executed=4)[0])
    with urllib.request.urlopen(f"{safe.address}/healthz", context=trust, timeout=10) as answer:
        assert answer.read() == b"OK\n"
    with pytest.raises(ConnectionLost, match="certificate"):
        Client(safe.url, reconnect_s=0)


def test_ends_leave_no_traceback(safe: Server, trust: ssl.SSLContext, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        with urllib.request.urlopen(f"{safe.address}/healthz", context=trust, timeout=10):
            pass
        with Client(safe.url, ssl=trust) as client:
            assert client.infer(named())["actions"].shape[1] == 3
    with trust.wrap_socket(connected(safe), server_hostname="localhost") as abrupt:
        abrupt.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert abrupt.recv(100).startswith(b"HTTP/1.1 200")
    time.sleep(0.8)
    gc.collect()  # tasks whose error nobody has read tell it now
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_who_does_not_go_on_is_cut_off(safe: Server, trust: ssl.SSLContext) -> None:
    begun = time.monotonic()
    with connected(safe) as silent:  # no handshake
        assert silent.recv(1) == b""
    with trust.wrap_socket(connected(safe), server_hostname="localhost") as deaf:
        with pytest.raises(OSError) as error:
            while True:
                deaf.sendall(b"GET /page/live.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        assert not isinstance(error.value, TimeoutError)
    assert time.monotonic() - begun < 8


def test_files_that_are_none(files: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = files
    with pytest.raises(ValueError, match=r"a PEM certificate at .* and its key"):
        tls(ServerConfig(certificate=key, key=certificate))
    with pytest.raises(FileNotFoundError, match="expected a PEM file"):
        tls(ServerConfig(certificate=tmp_path / "no", key=key))
    with pytest.raises(ValueError, match="a certificate and its key"):
        ServerConfig(certificate=certificate)


def test_a_key_behind_a_pass_phrase(files: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = files
    locked = tmp_path / "locked.pem"
    command = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ValueError, match=r"without a pass phrase at .*locked\.pem, it is encrypted"):
        tls(ServerConfig(certificate=certificate, key=locked))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_key_that_may_not_be_read(files: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = files
    kept = tmp_path / "kept.pem"
    kept.write_bytes(key.read_bytes())
    kept.chmod(0)
    with pytest.raises(PermissionError, match=r"kept\.pem"):
        tls(ServerConfig(certificate=certificate, key=kept))
