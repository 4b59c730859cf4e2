"""Messages: the bytes that others send and expect, and what is refused."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from wamkit_client.messages import MessageError, ReadLimits, pack, unpack

GOLDEN = {
    "openpi": (
        {"a": np.array([0, 1], np.float32)},
        "81a16184c40b5f5f6e6461727261795f5fc3c40464617461c408000000000000803fc4056474797065a33c6634c4057368617065 9102",
    ),
    "wav": (
        {"actions": np.array([[1, 2]], np.float32)},
        "81a7616374696f6e7384c40b5f5f6e6461727261795f5fc3c40464617461c4080000803f00000040c4056474797065a33c6634"
        "c40573686170659201 02",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_are_those_of_the_published_clients(name: str) -> None:
    message, text = GOLDEN[name]
    wanted = bytes.fromhex(text.replace(" ", ""))
    assert pack(message) == wanted
    ((key, array),) = unpack(wanted).items()
    assert array.dtype == message[key].dtype and (array == message[key]).all()
    assert name != "wav" or len(wanted) == 61


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 0, 3), np.float64),
        np.array(3, np.int16),
        np.array([True, False]),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
        np.float16(0.5),
        np.uint8(200),
        np.bool_(True),
        {"nested": [{"deep": np.ones(3, np.float32)}, "text", b"bytes", None, 1.5, -3]},
    ],
)
def test_what_goes_in_comes_out(value: Any) -> None:
    back = unpack(pack({"x": value}))["x"]
    if isinstance(value, dict):
        assert back["nested"][1:] == value["nested"][1:] and (back["nested"][0]["deep"] == 1).all()
    else:
        assert np.shape(back) == np.shape(value) and (np.asarray(back) == value).all()
        assert np.asarray(back).dtype == np.asarray(value).dtype.newbyteorder("=")


def test_other_projects_markers_of_text_are_read() -> None:
    data = {"__ndarray__": True, "data": b"\x01\x02", "dtype": "|u1", "shape": [2]}
    assert unpack(msgpack.packb({"x": data}))["x"].tolist() == [1, 2]
    assert unpack(msgpack.packb({"x": {"__npgeneric__": True, "data": 3, "dtype": "<i8"}}))["x"] == np.int64(3)


def test_any_byte_but_zero_is_true() -> None:
    data = {b"__ndarray__": True, b"data": b"\x00\x02\xff", b"dtype": "|b1", b"shape": [3]}
    assert unpack(msgpack.packb({"x": data}))["x"].tolist() == [False, True, True]


@pytest.mark.parametrize(
    "value",
    [object(), np.array([object()]), np.zeros(2, np.complex64), np.array(["text"]), np.zeros(1, "V4"), {1, 2}, 2**70],
)
def test_what_cannot_be_sent_is_told(value: Any) -> None:
    with pytest.raises(MessageError, match="expected"):
        pack({"x": value})


def array(**changes: Any) -> bytes:
    item = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2], **changes}
    return msgpack.packb({"x": {key: value for key, value in item.items() if value is not None}})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "none"),
        (b"\xc1", "none"),
        (pack({"x": np.zeros(9)})[:-3], "none"),
        (pack({"x": 1}) + b"\x01", "none"),
        (b"\x91" * 5000 + b"\xc0", "none"),  # nested deeper than any message
        (b"\xdd\xff\xff\xff\xff", "none"),  # a list of 4 billion
        (b"\xdf\xff\xff\xff\xff", "none"),
        (msgpack.packb([0] * 5000), "none"),
        (msgpack.packb({1: 2}), "none"),
        (msgpack.packb(msgpack.ExtType(4, b"x")), "none"),
        (msgpack.packb([{}] * 2000), "at most 1024 maps"),
        (msgpack.packb([[[]] * 4000] * 20), "at most 65536 items"),
        (array(dtype="|O"), "dtype"),
        (array(dtype="<c8"), "dtype"),
        (array(dtype="|V8"), "dtype"),
        (array(dtype="<U2"), "dtype"),
        (array(dtype="<M8[s]"), "dtype"),
        (array(dtype="f4, f4"), "dtype"),
        (array(dtype=None), "dtype"),
        (array(dtype=7), "dtype"),
        (array(data=b"\0" * 7), "expected 8 bytes"),
        (array(data="text"), "bytes of an array"),
        (array(data=None), "bytes of an array"),
        (array(shape=[3]), "expected 12 bytes"),
        (array(shape=[-2]), "shape"),
        (array(shape=[2**40, 2**40]), "bytes for an array"),
        (array(shape="2"), "shape"),
        (array(shape=[2.0]), "shape"),
        (array(shape=[True, 2]), "shape"),
        (array(shape=[1] * 9 + [2]), "at most 8 axes"),
        (msgpack.packb({"x": {"__npgeneric__": True, "data": "3", "dtype": "<i4"}}), "number"),
        (msgpack.packb({"x": {"__npgeneric__": True, "data": 300, "dtype": "|u1"}}), "fits"),
        (msgpack.packb({"x": {"__npgeneric__": True, "data": b"cos\nsystem", "dtype": "|O"}}), "dtype"),
    ],
)
def test_what_cannot_be_read_is_told(data: bytes, told: str) -> None:
    with pytest.raises(MessageError, match=told):
        unpack(data)


def test_a_small_message_claims_little_memory() -> None:
    hostile = b"\xdd\x00\x00\x10\x00" * 400 + b"\xc0"  # lists of 4096 within lists of 4096, none of them filled
    tracemalloc.start()
    with pytest.raises(MessageError):
        unpack(hostile)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20


def test_limits_are_the_readers() -> None:
    assert unpack(msgpack.packb([0] * 5000), ReadLimits(max_list=5000))
