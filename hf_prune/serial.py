"""Frozen dataclasses to JSON and back: strict about what it reads, whole in what it writes."""

import collections.abc
import dataclasses
import json
import math
import numbers
import os
import sys
import tempfile
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from hf_prune.errors import ConfigError
from hf_prune.registry import did_you_mean

T = TypeVar("T")


def to_dict(value: Any) -> Any:
    """A dataclass (nested ones too) as JSON types: tuples become lists, paths become strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    return value


def from_dict(cls: type[T], data: Any, where: str | None = None) -> T:
    """Build a dataclass from JSON types.

    Args:
        cls: the dataclass.
        data: a dict with its fields; missing ones take their defaults.
        where: what the data is called in errors.

    Raises:
        ConfigError: `data` is no dict, has unknown keys, lacks a field without default, or holds a wrong type.
    """
    where = where or cls.__name__
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be a JSON object; got {type(data).__name__}: {str(data)[:80]!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    for key in data:
        if key not in fields:
            raise ConfigError(
                f"{where} has no key '{key}'; expected: {', '.join(fields)}.{did_you_mean(str(key), list(fields))}"
            )
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ConfigError(f"{where} lacks the key '{name}'")
    return cls(**{key: _convert(hints[key], item, f"{where}.{key}") for key, item in data.items()})


def settle(instance: Any) -> None:
    """Hold the fields of a frozen dataclass to their types, as `from_dict` does: for `__post_init__`.

    Lists become tuples, dicts become nested dataclasses, numbers of numpy become Python's.

    Raises:
        ConfigError: a field has a wrong type.
    """
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = _convert(hints[field.name], getattr(instance, field.name), f"{type(instance).__name__}.{field.name}")
        object.__setattr__(instance, field.name, value)


def check_type(hint: Any, value: Any, where: str) -> None:
    """Refuse a value of another type than a hint says.

    Args:
        hint: type hint.
        value: as it was given.
        where: what it is called in errors.

    Raises:
        ConfigError: it has a wrong type.
    """
    _convert(hint, value, where)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [arg for arg in args if arg is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, where)
            except ConfigError:
                continue
        return _convert(options[-1], value, where)
    if origin is typing.Literal:
        if value not in args:
            hint_text = did_you_mean(str(value), [str(a) for a in args])
            raise ConfigError(f"{where}={value!r}; expected one of: {', '.join(map(repr, args))}.{hint_text}")
        return value
    if dataclasses.is_dataclass(hint):
        return (
            value if isinstance(value, typing.cast(type, hint)) else from_dict(typing.cast(type, hint), value, where)
        )
    if origin is tuple:
        _expect(value, (list, tuple), where, "a list")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(args) != len(value):
            raise ConfigError(f"{where} must hold {len(args)} values; got {len(value)}")
        return tuple(
            _convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True))
        )
    if origin in (list, collections.abc.Sequence):
        _expect(value, (list, tuple), where, "a list")
        return [_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict or hint is dict:
        _expect(value, (dict,), where, "an object")
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()} if args else value
    if hint is float:
        _expect(value, (numbers.Real,), where, "a number")
        if not abs(value) <= sys.float_info.max:  # NaN compares false: a failed measurement must not be read either
            raise ConfigError(f"{where}={value!r}; expected a finite number")
        return float(value)
    if hint is int:
        _expect(value, (numbers.Integral,), where, "int")
        return int(value)
    _expect(value, (hint,), where, getattr(hint, "__name__", str(hint)))
    return value


def _expect(value: Any, kinds: tuple[type, ...], where: str, wanted: str) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ConfigError(f"{where}={value!r} is a {type(value).__name__}; expected {wanted}")


def dumps(value: Any) -> str:
    """JSON text of a dataclass or of JSON types, indented, refusing NaN and infinity.

    Raises:
        ConfigError: a number is not finite (JSON cannot hold it, and it would mean a failed measurement).
    """
    data = to_dict(value)
    _check_finite(data, type(value).__name__)
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _check_finite(data: Any, where: str) -> None:
    if isinstance(data, float) and not math.isfinite(data):
        raise ConfigError(f"{where} is {data}; a record holds finite numbers only")
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, item in items:
        _check_finite(item, f"{where}.{key}")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it appears whole or not at all (temporary sibling, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ConfigError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits and endless nesting too
        raise ConfigError(f"{path} is not JSON: {error}") from error
