"""Dataclasses held to their annotations, and read from JSON; a value of a wrong type is told by its name.

Annotations may be `bool`, `int`, `float`, `str`, `Literal`, tuples, dicts, dataclasses and unions of these with `None`.
A whole number is no boolean, and a number is finite. This module needs only the standard library.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import reprlib
import sys
import types
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

COPY_AGAIN: Final = "copy the policy folder again, or export it anew"

_PLAIN: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    dict: "an object",
    tuple: "a list",
}


@contextmanager
def blame(where: object, remedy: str = "") -> Iterator[None]:
    """Let errors of a content name where it came from: a file or a key.

    Args:
        where: put in front of the message.
        remedy: what to do, put behind it.

    Raises:
        ValueError: the error within.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}{remedy and '; '}{remedy}") from error


def check_fields(instance: Any, what: str) -> None:
    """Refuse a dataclass that holds a value of another type than it says; for `__post_init__`.

    Args:
        instance: of a dataclass.
        what: name for the message.

    Raises:
        ValueError: naming the field, what it should hold and what it holds.
    """
    for name, annotation in _annotations(cast(Hashable, type(instance))).items():
        _require(annotation, getattr(instance, name), name, f"{what}: ")


def check_least(instance: Any, what: str, least: int, *names: str) -> None:
    """Refuse a dataclass with a number below a limit; `None` is above it.

    Args:
        instance: of a dataclass.
        what: name for the message.
        least: smallest value.
        names: fields.

    Raises:
        ValueError: naming the field.
    """
    for name in names:
        value = getattr(instance, name)
        if value is not None and value < least:
            raise ValueError(f"{what}: expected {name} of {least} or more, got {value}")


def read_fields(cls: type[T], data: object, what: str, *, others: bool = False) -> T:
    """A dataclass from what JSON gave.

    Args:
        cls: the dataclass; a field with a default may be missing.
        data: a dict of its fields; lists become tuples, and dicts the dataclasses that the annotations name.
        what: name for the message.
        others: keys that are no fields are left out, instead of refused.

    Raises:
        ValueError: a key is missing or unknown, or a value is of another type or out of range; the message names it.
    """
    annotations = _annotations(cast(Hashable, cls))
    if not isinstance(data, dict):
        raise ValueError(f"{what}: expected an object with the keys {', '.join(annotations)}, got {_short(data)}")
    optional = {item.name for item in dataclasses.fields(cast(Any, cls)) if _has_default(item)}
    missing = [name for name in annotations if name not in data and name not in optional]
    unknown = [] if others else [key for key in data if key not in annotations]
    if missing or unknown:
        listed = {"missing": missing, "unknown": unknown}
        problems = [f"; {kind}: {', '.join(keys)}" for kind, keys in listed.items() if keys]
        raise ValueError(f"{what}: expected the keys {', '.join(annotations)}{''.join(problems)}")
    return cls(**{name: read_value(hint, data[name], name) for name, hint in annotations.items() if name in data})


def read_value(annotation: Any, data: object, name: str) -> Any:
    """A value from what JSON gave: lists become tuples, dicts the dataclasses that the annotation names, 1 becomes 1.0.

    Args:
        annotation: its type.
        data: what JSON gave.
        name: for the message.

    Raises:
        ValueError: the value is of another type; the message names it.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType) and data is not None:
        (annotation,) = (item for item in args if item is not types.NoneType)
        return read_value(annotation, data, name)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        with blame(name):
            return read_fields(annotation, data, annotation.__name__)
    if origin is tuple and isinstance(data, list | tuple):
        wanted, data = _items(args, len(data)), tuple(data)
        if len(wanted) == len(data):
            each = enumerate(zip(wanted, data, strict=True))
            data = tuple(read_value(item, value, f"{name}[{index}]") for index, (item, value) in each)
    if origin is dict and isinstance(data, dict):
        data = {key: read_value(args[1], value, f"{name}[{key!r}]") for key, value in data.items()}
    _require(annotation, data, name, "")
    return float(cast(float, data)) if annotation is float else data


@functools.cache
def _annotations(cls: Hashable) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cast(Any, cls))}


def _has_default(item: dataclasses.Field[Any]) -> bool:
    return item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING


def _items(args: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """A tuple's annotations, one for each of its `count` items."""
    return args[:1] * count if args[-1] is Ellipsis else args


def _require(annotation: Any, value: object, name: str, prefix: str) -> None:
    found = _misfit(annotation, value, name)
    if found is not None:
        name, expected, value = found
        raise ValueError(f"{prefix}expected {name} {expected}, got {_short(value)}")


def _misfit(annotation: Any, value: object, name: str) -> tuple[str, str, object] | None:
    """Name, expectation and value of the first thing that is of another type, `None` when there is none."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return None
    if origin is Literal:
        return None if value in args else (name, f"to be one of {', '.join(map(str, args))}", value)
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in args:
            return None
        (annotation,) = (item for item in args if item is not types.NoneType)
        found = _misfit(annotation, value, name)
        return found and (found[0], f"{found[1]} or null", found[2])
    if origin is tuple and isinstance(value, tuple):
        wanted = _items(args, len(value))
        if len(wanted) != len(value):
            return name, f"as a list of {len(wanted)}", value
        each = [(item, one, f"{name}[{index}]") for index, (item, one) in enumerate(zip(wanted, value, strict=True))]
        return next(filter(None, itertools.starmap(_misfit, each)), None)
    if origin is dict and isinstance(value, dict):
        each = [(args[1], item, f"{name}[{key!r}]") for key, item in value.items()]
        return next(filter(None, itertools.starmap(_misfit, each)), None)
    plain = origin or annotation
    return None if _is_plain(plain, value) else (name, f"as {_PLAIN.get(plain, f'a {plain.__name__}')}", value)


def _is_plain(plain: type, value: object) -> bool:
    if plain is float:  # compared, because a large whole number has no float; NaN is not below anything
        return isinstance(value, int | float) and not isinstance(value, bool) and bool(abs(value) <= sys.float_info.max)
    return isinstance(value, plain) and (plain is bool or not isinstance(value, bool))


def _short(value: object) -> str:
    """A value as JSON writes it, where it can, cut if it is long."""
    return reprlib.repr(value) if dataclasses.is_dataclass(value) else _cut(json.dumps(value, default=repr))


def _cut(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
