"""Cutting a checkpoint file to file, beside `cp` of as many bytes, and beside mergekit's passthrough.

Eight of the 32 blocks of a random checkpoint (Llama-7B shapes, 13.5 GB) go. The floor is `cp --reflink=never` of the
base's own files, its time scaled to the bytes kept. Both sides start from a cold page cache after a rest; both
end when their files are on the disk (fsync), and each is the first in every other pair. Memory is what the process
peaks at above what importing takes. The whole command, card and reload check included, is timed apart, and so is that
check; mergekit, which checks nothing, is held against the cut with its imports, and against the whole command.
"""

import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers.models.llama import modeling_llama  # noqa: F401 (the child would import it while the clock runs)

from hf_prune import pruner  # noqa: F401 (likewise)
from hf_prune.checkpoint import checkpoint_entries
from hf_prune.cli.app import app
from hf_prune.loading import locate
from hf_prune.local_files import local_weights
from hf_prune.records import Operation, Plan
from hf_prune.reload import check_streamed
from hf_prune.surgery.checkpoint import write_weights

from . import mergekit
from .checkpoints import SEVEN_B, Shapes, checkpoint
from .costs import Cost, cold, run_child, sync, weights_of

RUNS = 4
_REST = 2e-9
"""Seconds of rest before each run, for each byte: some disks are fast for a while, and slow after much work."""


def main(
    shapes: Shapes = SEVEN_B,
    *,
    runs: int = RUNS,
    folder: Path | None = None,
    scratch: Path | None = None,
    environment: Path | None = None,
) -> dict[str, Any]:
    """Cut a quarter of the blocks, in turns with `cp`; then the whole command, and mergekit where it is installed.

    Args:
        shapes: of the model.
        runs: of each side.
        folder: a checkpoint of these shapes; made and deleted when None.
        scratch: folder with room for three times the checkpoint.
        environment: a virtual environment with mergekit (`mergekit.install`); no mergekit when None.
    """
    with ExitStack() as stack:
        source = folder or stack.enter_context(checkpoint(shapes, scratch))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-prune-bench-", dir=scratch)))
        layers = middle(shapes.layers)
        kept = kept_bytes(source, layers)
        ours, theirs = work / "cut", work / "copied"
        like = weights_of(source)
        pairs = []
        for number in range(runs):
            shutil.rmtree(ours, ignore_errors=True)
            if number % 2:
                copied, cost = _copy(like, theirs, kept), _cut(source, ours, layers)
            else:
                cost, copied = _cut(source, ours, layers), _copy(like, theirs, kept)
            pairs.append((cost, copied))
            shutil.rmtree(theirs)
        command = _command(source, work / "pruned", layers, ours)
        checked = run_child(
            "streamed_surgery:check", {"folder": str(source), "output": str(work / "pruned"), "layers": layers}
        )
        shutil.rmtree(work / "pruned")
        peer = None if environment is None else mergekit.main(environment, source, work, layers, reference=ours)
    costs = [cost for cost, _ in pairs]
    seconds, whole = (statistics.median(getattr(cost, kind) for cost in costs) for kind in ("seconds", "wall"))
    found = {
        "model": shapes.describe(),
        "blocks dropped": [layers[0], layers[-1]],
        "bytes kept": kept,
        "seconds (median)": round(seconds, 2),
        "cp --reflink=never, seconds (median)": round(statistics.median(copy for _, copy in pairs), 2),
        "throughput over cp (median of pairs)": _round(statistics.median(copy / cost.seconds for cost, copy in pairs)),
        "throughput over cp (min, max)": [
            _round(function(copy / cost.seconds for cost, copy in pairs)) for function in (min, max)
        ],
        "throughput (GB/s)": _round(kept / seconds / 1e9),
        "bytes read over kept": _round(max(cost.read for cost in costs) / kept, 5),
        "bytes written over kept": _round(max(cost.written for cost in costs) / kept, 5),
        "bytes read from the disk over kept": _round(max(cost.from_disk for cost in costs) / kept, 5),
        "memory above imports (largest)": max(cost.above_imports for cost in costs),
        "resident after imports": costs[0].imports,
        "with imports (median seconds)": round(whole, 2),
        "whole command": command,
        "of it the reload check": {"seconds": round(checked.seconds, 2), "peak resident, at most": checked.result},
        "runs": runs,
    }
    if peer is not None:
        found |= {
            "mergekit": peer,
            "time of mergekit over ours": _round(peer["seconds"] / whole),
            "time of mergekit over the whole command's": _round(peer["seconds"] / command["seconds"]),
            "peak of mergekit over ours": _round(peer["peak resident"] / max(cost.peak for cost in costs)),
        }
    return found


def middle(layers: int) -> list[int]:
    """A quarter of the blocks, behind the middle."""
    first = layers * 5 // 8
    return list(range(first, first + layers // 4))


def kept_bytes(folder: Path, layers: list[int]) -> int:
    """Bytes of the tensors that stay."""
    gone = tuple(f"model.layers.{layer}." for layer in layers)
    return sum(entry.size for name, entry in checkpoint_entries(folder).items() if not name.startswith(gone))


def write(folder: str, output: str, layers: list[int]) -> None:
    """The cut alone: tensors from file to file; run in a child process."""
    target = Path(output)
    target.mkdir()
    write_weights(local_weights(Path(folder)), Path(folder), _plan(folder, layers), target, journal=None)
    sync(weights_of(target))


def prune(folder: str, output: str, layers: list[int]) -> None:
    """What `hf-prune prune` does, card and reload check included; run in a child process."""
    which = f"{layers[0]}-{layers[-1]}"
    app(["prune", folder, "--layers", which, "--output", output, "--quiet"], standalone_mode=False)


def check(folder: str, output: str, layers: list[int]) -> int:
    """The reload check alone, which runs in a process of its own.

    Returns:
        Bytes that were resident at its peak, or in this process where that is more.
    """
    check_streamed(Path(output), source=Path(folder), plan=_plan(folder, layers))
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _plan(folder: str, layers: list[int]) -> Plan:
    source, _ = locate(folder)
    return Plan(source.ref, "uidl", "window", (Operation("drop", tuple(layers)),), "a benchmark")


def _cut(source: Path, target: Path, layers: list[int]) -> Cost:
    cold(weights_of(source))
    time.sleep(_REST * sum(path.stat().st_size for path in weights_of(source)))
    return run_child("streamed_surgery:write", {"folder": str(source), "output": str(target), "layers": layers})


def _copy(files: list[Path], target: Path, kept: int) -> float:
    """Seconds of `cp` from a cold cache to files that are on the disk, for as many bytes as are kept."""
    target.mkdir()
    cold(files)
    time.sleep(_REST * kept)
    started = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", *map(str, files), str(target)], check=True)
    sync(weights_of(target))
    return (time.perf_counter() - started) * kept / sum(path.stat().st_size for path in files)


def _command(source: Path, target: Path, layers: list[int], reference: Path) -> dict[str, Any]:
    cold(weights_of(source))
    cost = run_child("streamed_surgery:prune", {"folder": str(source), "output": str(target), "layers": layers})
    started = time.perf_counter()
    sync(weights_of(target))
    waited = time.perf_counter() - started
    mergekit.check_equal(target, reference)
    return {
        "seconds": round(cost.wall + waited, 2),
        "seconds, imports left out": round(cost.seconds + waited, 2),
        "memory above imports": cost.above_imports,
        "peak resident": cost.peak,
    }


def _round(value: float, digits: int = 3) -> float:
    return round(value, digits)
