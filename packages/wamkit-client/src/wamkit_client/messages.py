"""Messages on the wire: msgpack maps that hold numpy arrays, never pickled.

An array is a map with the binary keys `__ndarray__` (true), `data` (its bytes in C order), `dtype` (numpy's dtype
string, for instance `<f4`) and `shape`; a numpy scalar one with `__npgeneric__`, `data` and `dtype`. Text keys are read
too. This is the form of openpi's clients and servers and of WAV's.

What comes from a stranger is read within limits, so that a small message cannot claim much memory or time.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np

__all__ = ["MessageError", "ReadLimits", "pack", "read_array", "unpack"]

_DTYPE: Final = re.compile(r"[<>=|]?(b1|\?|[iu][1248]|f[248])")
_ARRAY, _SCALAR, _DATA, _KIND, _SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"


class MessageError(ValueError):
    """Bytes that are no message, or numbers of a kind that no message may hold."""


@dataclass(frozen=True)
class ReadLimits:
    """What a message may hold at most.

    Args:
        max_list: items of one list.
        max_map: items of one map.
        max_items: items of all lists together, and lists.
        max_maps: maps in all, arrays among them.
        max_dims: axes of an array.
    """

    max_list: int = 4096
    max_map: int = 256
    max_items: int = 65536
    max_maps: int = 1024
    max_dims: int = 8


def pack(message: Any, *, text_keys: bool = False) -> bytes:
    """Bytes of a message.

    Args:
        message: maps, lists, text, bytes, numbers, and numpy arrays and scalars of booleans, integers and floats.
        text_keys: mark arrays with text, as vla-eval does, instead of bytes.

    Raises:
        MessageError: an object of another kind.
    """
    try:
        packed: bytes = msgpack.packb(message, default=_encode_text if text_keys else _encode, use_bin_type=True)
    except (TypeError, OverflowError, ValueError) as error:
        if isinstance(error, MessageError):
            raise
        raise MessageError(f"expected maps, lists, text, numbers and arrays, got something else: {error}") from error
    return packed


def unpack(data: bytes, limits: ReadLimits | None = None) -> Any:
    """The message of some bytes; arrays in it may be read only.

    Args:
        data: one whole message.
        limits: refuse what is larger; by default `ReadLimits()`.

    Raises:
        MessageError: no msgpack, a dtype that is refused, data that does not fill its shape, or a limit exceeded.
    """
    limits = limits or ReadLimits()
    reader = _Reader(limits)
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            object_hook=reader,
            list_hook=reader.count,
            max_array_len=limits.max_list,
            max_map_len=limits.max_map,
            max_ext_len=0,
        )
    except MessageError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise MessageError(f"expected one msgpack message, got {len(data)} bytes that are none ({reason})") from error


def read_array(data: Any, dtype: Any, shape: Any, *, max_dims: int = ReadLimits.max_dims) -> np.ndarray[Any, Any]:
    """The array that some bytes are, once they, their dtype and their shape were found to fit each other.

    Args:
        data: its bytes in C order.
        dtype: numpy's string of booleans, integers or floats.
        shape: list of sizes.
        max_dims: axes it may have.

    Returns:
        In this machine's byte order; it may be read only.

    Raises:
        MessageError: they do not fit.
    """
    kind = _dtype(dtype)
    if not isinstance(data, bytes):
        raise MessageError(f"expected the bytes of an array as 'data', got {type(data).__name__}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise MessageError("expected the 'shape' of an array as a list of integers of 0 or more")
    if len(shape) > max_dims:
        raise MessageError(f"expected an array of at most {max_dims} axes, got {len(shape)}")
    wanted = math.prod(shape) * kind.itemsize
    if len(data) != wanted:
        raise MessageError(f"expected {wanted} bytes for an array {shape} of {kind}, got {len(data)}")
    if kind.kind == "b":  # any byte but 0 is true; numpy itself trusts that there is only 0 and 1
        return np.frombuffer(data, np.uint8).reshape(shape) != 0
    array = np.frombuffer(data, kind).reshape(shape)
    return array if kind.isnative else array.astype(kind.newbyteorder("="))


def _encode(item: Any) -> Any:
    if isinstance(item, np.ndarray):
        _check_kind(item.dtype)
        array = np.ascontiguousarray(item)
        # `ascontiguousarray` makes an array without axes one with one axis; its own shape is what counts.
        data = array.reshape(-1).view(np.uint8).data  # no copy
        return {_ARRAY: True, _DATA: data, _KIND: item.dtype.str, _SHAPE: list(item.shape)}
    if isinstance(item, np.generic):
        _check_kind(item.dtype)
        return {_SCALAR: True, _DATA: item.item(), _KIND: item.dtype.str}
    raise MessageError(f"expected maps, lists, text, numbers and arrays, got {type(item).__name__}; convert it first")


def _encode_text(item: Any) -> Any:
    return {key.decode(): value for key, value in _encode(item).items()}


def _check_kind(dtype: np.dtype[Any]) -> None:
    if not _DTYPE.fullmatch(dtype.str):
        raise MessageError(f"expected an array of booleans, integers or floats, got dtype {dtype}; convert it first")


class _Reader:
    """Turns maps that stand for arrays into arrays, and counts maps and what lies in lists."""

    def __init__(self, limits: ReadLimits) -> None:
        self.limits = limits
        self.maps = 0
        self.items = 0

    def count(self, items: list[Any]) -> list[Any]:
        """A list as it is; an empty one takes one byte on the wire and more than fifty here."""
        self.items += 1 + len(items)
        if self.items > self.limits.max_items:
            raise MessageError(f"expected at most {self.limits.max_items} items in the lists of a message, got more")
        return items

    def __call__(self, item: dict[Any, Any]) -> Any:
        self.maps += 1
        if self.maps > self.limits.max_maps:
            raise MessageError(f"expected at most {self.limits.max_maps} maps in a message, got more")
        for marker, read in ((_ARRAY, self._array), (_SCALAR, self._scalar)):
            if marker in item or marker.decode() in item:
                return read({_text(key): value for key, value in item.items()})
        return item

    def _array(self, item: dict[str, Any]) -> np.ndarray[Any, Any]:
        return read_array(item.get("data"), item.get("dtype"), item.get("shape"), max_dims=self.limits.max_dims)

    def _scalar(self, item: dict[str, Any]) -> np.generic:
        dtype, number = _dtype(item.get("dtype")), item.get("data")
        if not isinstance(number, (bool, int, float)):
            raise MessageError(f"expected a number as 'data' of a scalar, got {type(number).__name__}")
        try:
            return dtype.newbyteorder("=").type(number)
        except OverflowError as error:
            raise MessageError(f"expected a number that fits into {dtype}, got another") from error


def _text(key: Any) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)


def _dtype(name: Any) -> np.dtype[Any]:
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        shown = repr(name[:40]) if isinstance(name, str) else type(name).__name__
        raise MessageError(f"expected a 'dtype' of booleans, integers or floats such as '<f4' or '|u1', got {shown}")
    return np.dtype(name)
