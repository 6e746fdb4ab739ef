"""The tensors of a safetensors file by its header alone: where each lies, and that the header tells no lies.

A header comes from a stranger: nothing is allocated by its word, and what it says is held against the file's length.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from hf_prune.errors import CheckpointError

LONGEST_HEADER = 100_000_000
"""Bytes that a header may have; the safetensors library draws the same line."""

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu, "C64": torch.complex64,
}  # fmt: skip
"""Names of dtypes in safetensors files."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as it lies in a file.

    Attributes:
        name: of the tensor.
        dtype: as the file spells it, such as "BF16".
        shape: of the tensor.
        file: name of the file, without its folder.
        start: first byte, counted from the start of the file.
        size: bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    size: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return DTYPES[self.dtype]


def header_length(prefix: bytes, size: int, file: str) -> int:
    """Bytes of the header, by the first eight bytes of a file.

    Args:
        prefix: the first eight bytes.
        size: bytes of the whole file.
        file: its name, for errors.

    Raises:
        CheckpointError: the file is too short, or the length is absurd.
    """
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise CheckpointError(f"{file} is {size} bytes long and promises a header of {length}; download it again")
    if length > LONGEST_HEADER:
        raise CheckpointError(
            f"{file} promises a header of {length} bytes; expected at most {LONGEST_HEADER}, as the safetensors "
            "library does"
        )
    return length


def parse_header(raw: bytes, size: int, file: str, name: str | None = None) -> dict[str, TensorEntry]:
    """The tensors that a header names, in the order in which they lie.

    Args:
        raw: the header, without the eight bytes of its length.
        size: bytes of the whole file.
        file: what it is called in errors.
        name: what entries call it; `file` when None.

    Raises:
        CheckpointError: it is no header, names a tensor twice or an unknown dtype, or its offsets overlap, leave
            holes, disagree with shapes or with the length of the file.
    """
    try:
        header = json.loads(raw, object_pairs_hook=lambda pairs: _unique(pairs, file))
        header.pop("__metadata__", None)
        entries = [_entry(key, value, 8 + len(raw), file, name or file) for key, value in header.items()]
    except CheckpointError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} has no safetensors header ({error!r}); download it again") from error
    return {entry.name: entry for entry in _in_order(entries, 8 + len(raw), size, file)}


def _unique(pairs: list[tuple[str, Any]], file: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"the header of {file} names '{twice}' twice; download it again")
    return found


def _entry(name: str, value: dict[str, Any], offset: int, path: str, file: str) -> TensorEntry:
    dtype, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    if dtype not in DTYPES:
        raise CheckpointError(
            f"tensor '{name}' in {path} has dtype {str(dtype)[:40]!r}; expected one of: {', '.join(sorted(DTYPES))}"
        )
    numbers = (*shape, start, end)
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers) or start > end:
        raise CheckpointError(
            f"tensor '{name}' in {path} has shape {shape} and offsets {start}, {end}; expected sizes"
        )
    promised = math.prod(shape) * DTYPES[dtype].itemsize
    if end - start != promised:
        raise CheckpointError(
            f"tensor '{name}' in {path} takes {end - start} bytes; {dtype} of shape {list(shape)} takes {promised}. "
            "Download it again"
        )
    return TensorEntry(name, dtype, shape, file, offset + start, end - start)


def _in_order(entries: Iterable[TensorEntry], start: int, size: int, file: str) -> list[TensorEntry]:
    ordered = sorted(entries, key=lambda entry: (entry.start, entry.size))
    for entry in ordered:
        if entry.start != start:
            state = "overlaps the one before it" if entry.start < start else "leaves a hole before it"
            raise CheckpointError(f"tensor '{entry.name}' in {file} {state}; download it again")
        start += entry.size
    if start != size:
        state = "truncated" if size < start else "too long"
        raise CheckpointError(f"{file} is {state}: {size} bytes, its header promises {start}; download it again")
    return ordered
