"""What work costs: seconds, bytes read and written, peak memory; in a child process, under a hard limit if wanted."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_PIECE = 2**24


@dataclass(frozen=True)
class Cost:
    """What a child process took.

    Attributes:
        wall: seconds from its start to its end.
        seconds: of the work alone, imports left out.
        imports: resident bytes once everything was imported.
        peak: most resident bytes while it worked.
        read: bytes that system calls read while it worked, from the disk or not.
        written: bytes that system calls wrote.
        from_disk: bytes that the disk was asked for.
        result: what the work returned.
        limited: most bytes that its memory cgroup was charged with, page cache included; None without a cgroup.
    """

    wall: float
    seconds: float
    imports: int
    peak: int
    read: int
    written: int
    from_disk: int
    result: Any
    limited: int | None = None

    @property
    def above_imports(self) -> int:
        """Bytes that the work took above what importing takes."""
        return self.peak - self.imports


@dataclass
class Limit:
    """A memory cgroup that a child joins.

    Attributes:
        kind: "cgroup v1", "cgroup v2", or why there is none.
        folder: of the cgroup; None where none can be had.
        peak: its file with the most bytes that it was charged with.
    """

    kind: str
    folder: Path | None = None
    peak: str = ""

    def used(self) -> int | None:
        """The most bytes that it was charged with."""
        return None if self.folder is None else int((self.folder / self.peak).read_text())


@contextmanager
def memory_limit(size: int | None) -> Iterator[Limit]:
    """A memory cgroup of so many bytes, where this process may make one; it goes again at the end.

    Args:
        size: bytes; None for no limit.
    """
    if size is None:
        yield Limit("none asked for")
        return
    name = f"hf-prune-bench-{os.getpid()}"
    if (_V1 / "memory.limit_in_bytes").is_file():
        folder, limit, limits = _V1 / name, "memory.limit_in_bytes", Limit("cgroup v1")
        limits.peak = "memory.max_usage_in_bytes"
    else:
        folder, limit, limits = _V2 / name, "memory.max", Limit("cgroup v2")
        limits.peak = "memory.peak"
    try:
        folder.mkdir()
    except OSError as error:
        yield Limit(f"none: no memory cgroup can be made here ({error.strerror})")
        return
    try:
        try:
            (folder / limit).write_text(str(size))
            limits.folder = folder
        except OSError as error:
            limits = Limit(f"none: the memory cgroup takes no limit ({error.strerror})")
        yield limits
    finally:
        folder.rmdir()


def run_child(
    work: str,
    arguments: Mapping[str, Any],
    *,
    limit: Limit | None = None,
    environment: Mapping[str, str] = {},  # noqa: B006 (never changed)
) -> Cost:
    """Run a function of these benchmarks in a Python of its own.

    Args:
        work: "module:function" below `tests.benchmarks`; importing the module must import all that the work needs.
        arguments: of the function, as JSON.
        limit: the cgroup that the child joins before it imports anything.
        environment: variables set in the child.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    given = {"work": work, "arguments": dict(arguments), "cgroup": str(limit.folder) if limit and limit.folder else ""}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.costs", json.dumps(given)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=Path(__file__).parent.parent.parent,
    )
    wall = time.perf_counter() - started
    if done.returncode:
        killed = " (killed: out of memory?)" if done.returncode == -9 else ""
        raise RuntimeError(f"{work} ended with {done.returncode}{killed}: {done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Cost(wall, **found, limited=limit.used() if limit else None)


def cold(paths: Iterable[Path]) -> None:
    """Have the system forget what it holds of some files, so that the next reader waits for the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_seconds(paths: Iterable[Path]) -> float:
    """Seconds to read some files from the disk, one after the other."""
    paths = list(paths)
    cold(paths)
    buffer = bytearray(_PIECE)
    started = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started


def sync(paths: Iterable[Path]) -> None:
    """Wait until files are on the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def weights_of(folder: Path) -> list[Path]:
    """The weight files of a checkpoint."""
    return sorted(folder.glob("*.safetensors"))


def resident(field: str) -> int:
    """Bytes that a field of this process's status names: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def hoard(size: int) -> int:
    """Fill so many bytes, to see what a limit does."""
    return len(b"1" * size)


def _io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def _child(given: dict[str, Any]) -> dict[str, Any]:
    if given["cgroup"]:
        (Path(given["cgroup"]) / "cgroup.procs").write_text(str(os.getpid()))
    module, _, function = given["work"].partition(":")
    work = getattr(importlib.import_module(f"tests.benchmarks.{module}"), function)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    imports, before = resident("VmRSS"), _io()
    started = time.perf_counter()
    result = work(**given["arguments"])
    seconds, after = time.perf_counter() - started, _io()
    return {
        "seconds": seconds,
        "imports": imports,
        "peak": resident("VmHWM"),
        "read": after["rchar"] - before["rchar"],
        "written": after["wchar"] - before["wchar"],
        "from_disk": after["read_bytes"] - before["read_bytes"],
        "result": result,
    }


if __name__ == "__main__":
    found = json.dumps(_child(json.loads(sys.argv[1])))
    sys.stdout.write(f"\n{found}\n")
