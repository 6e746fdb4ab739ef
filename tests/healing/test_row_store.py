"""Rows on disk: what was put comes back to the bit, what was cut off does not, and nobody reads another's."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
import torch

from hf_prune import serial
from hf_prune.errors import CheckpointError, OutputError
from hf_prune.healing.row_store import RowStore, planned_bytes

LENGTHS = (3, 1, 5)
FIELDS = {"states": (4, torch.bfloat16), "tokens": (2, torch.int64), "chances": (2, torch.float32)}


def row(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    length = LENGTHS[number]
    return {
        "states": torch.randn(length, 4, generator=generator).to(torch.bfloat16),
        "tokens": torch.randint(2**40, (length, 2), generator=generator),
        "chances": torch.randn(length, 2, generator=generator),
    }


def store(folder, key="a", lengths=LENGTHS, fields=FIELDS) -> RowStore:
    return RowStore(folder, key, lengths, fields, what="states of 'tiny'")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_rows_come_back_to_the_bit_in_any_order_and_from_another_process_view(tmp_path):
    first, second = store(tmp_path), store(tmp_path)
    for number in (2, 0, 1):
        assert not second.has(number)
        first.put(number, **row(number))
        assert second.has(number)
    assert all(same(second.get(number), row(number)) for number in range(3))
    assert first.left == store(tmp_path).left == 0


def test_its_size_is_what_lies_on_disk(tmp_path):
    kept = store(tmp_path / "rows")
    files = [path for path in (tmp_path / "rows").iterdir() if path.suffix == ".bin"]
    assert kept.bytes == planned_bytes(LENGTHS, FIELDS) == sum(path.stat().st_size for path in files)
    assert kept.bytes == 9 * (4 * 2 + 2 * 8 + 2 * 4) + 3 * 8
    assert kept.left == 3


def test_a_row_that_was_cut_off_counts_as_missing(tmp_path):
    kept = store(tmp_path)
    kept.put(0, **row(0))
    kept.put(2, **row(2))
    with open(tmp_path / "states.bin", "r+b") as file:  # the last number of row 2 never reached the disk
        file.seek(-2, os.SEEK_END)
        file.write(b"\0\0")
    again = store(tmp_path)
    assert (again.has(0), again.has(1), again.has(2), again.left) == (True, False, False, 2)
    again.put(2, **row(2))
    assert same(store(tmp_path).get(2), row(2))


def test_a_mark_follows_its_data(tmp_path, monkeypatch):
    kept, written = store(tmp_path), []
    from hf_prune.healing import row_store

    real = row_store._write
    monkeypatch.setattr(row_store, "_write", lambda file, *rest: (written.append(file.name.name), real(file, *rest)))
    kept.put(0, **row(0))
    assert written == ["states.bin", "tokens.bin", "chances.bin", "marks.bin"]


def test_rows_outlive_a_kill(tmp_path):
    code = f"""
        import os, signal
        from pathlib import Path
        from tests.healing.test_row_store import row, store
        kept = store(Path({str(tmp_path)!r}))
        kept.put(0, **row(0))
        kept.put(1, **row(1))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = store(tmp_path)
    assert kept.left == 1
    assert same(kept.get(0), row(0)) and same(kept.get(1), row(1))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"key": "b"}, "key"),
        ({"lengths": (3, 1, 4)}, "lengths"),
        ({"fields": {**FIELDS, "states": (4, torch.float32)}}, "fields"),
    ],
)
def test_the_store_of_something_else_is_refused_and_left_alone(tmp_path, changes, named):
    store(tmp_path).put(0, **row(0))
    with pytest.raises(CheckpointError, match=rf"states of 'tiny', of another {named} than .*Delete that folder"):
        store(tmp_path, **changes)
    assert same(store(tmp_path).get(0), row(0))


def test_data_of_another_key_is_not_read_even_where_nothing_says_whose_it_is(tmp_path):
    store(tmp_path).put(0, **row(0))
    (tmp_path / "store.json").unlink()
    assert not store(tmp_path, key="b").has(0)
    assert serial.read_json(tmp_path / "store.json")["key"] == "b"


def test_a_full_disk_is_told_before_anything_is_there(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)  # a full disk: this machine has none to spare
    with pytest.raises(OutputError, match="0 MB cannot be written to .*No space left on device.*larger disk"):
        store(tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("tensors", [{}, {"more": torch.zeros(3, 4)}], ids=["wrong shape", "unknown field"])
def test_what_does_not_fit_is_refused(tmp_path, tensors):
    kept = store(tmp_path)
    with pytest.raises(AssertionError):
        kept.put(0, **(row(1) | tensors))
    assert not kept.has(0)


def test_reading_holds_no_memory(tmp_path):
    rows, length, width = 64, 256, 512
    kept = RowStore(tmp_path, "a", [length] * rows, {"states": (width, torch.float32)})
    for number in range(rows):
        kept.put(number, states=torch.full((length, width), float(number)))
    before = psutil.Process().memory_info().rss
    again = RowStore(tmp_path, "a", [length] * rows, {"states": (width, torch.float32)})
    assert sum(float(again.get(number)["states"][0, 0]) for number in range(rows)) == sum(range(rows))
    assert psutil.Process().memory_info().rss - before < again.bytes / 4
