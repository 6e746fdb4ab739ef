"""Benchmark results as the Markdown table that the README shows.

`python -m tests.benchmarks.table` prints the table of the results that are kept in `results/`.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_VERSIONS = ("torch", "transformers")

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: was measured.
        figure: that came out.
        beside: what it is held against, or measured on.
        target: that was set; empty where there was none.
    """

    what: str
    figure: str
    beside: str
    target: str = ""


def render(results: Iterable[dict[str, Any]]) -> str:
    """The table, a part for each machine and set of versions.

    Args:
        results: as `load` gives them.
    """
    machines: dict[str, list[Row]] = {}
    for result in results:
        rows = ROWS.get(result["benchmark"])
        if rows is not None:
            machines.setdefault(_machine(result), []).extend(rows(result["figures"]))
    return "\n\n".join(_part(machine, rows) for machine, rows in machines.items())


def load(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The results that are kept in a folder, in the order of the table."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    order = list(ROWS)
    return sorted((r for r in found if r["benchmark"] in ROWS), key=lambda r: order.index(r["benchmark"]))


def _machine(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in _VERSIONS if name in result["versions"])
    return f"{result['hardware']}; {versions}"


def _part(machine: str, rows: Sequence[Row]) -> str:
    lines = [
        "| What | Figure | Beside | Target |",
        "|---|---|---|---|",
        *(f"| {row.what} | {row.figure} | {row.beside} | {row.target} |" for row in rows),
    ]
    return "\n".join(lines) + f"\n\nMeasured on: {machine}."


def _measure(found: Figures) -> list[Row]:
    low, high = found["ratio (min, max)"]
    return [
        Row(
            "measuring / bare forward",
            f"{found['ratio (median of pairs)']:.2f} ({low:.2f}–{high:.2f})",
            f"the forward of the same blocks, Llama-3.2-1B shapes, {found['tokens']:,} tokens, no head on either side",
            "≤ 1.05",
        )
    ]


def _peers(found: Figures) -> list[Row]:
    return [
        Row(
            f"{peer}'s way of measuring / ours, {_AMOUNTS[amount]}",
            f"{row['seconds over ours']:.1f} × the time, {row['memory over ours']:.1f} × the extra memory",
            f"our own run on the same {found['tokens']:,} tokens: {found['model']}",
        )
        for amount in _AMOUNTS
        for peer, row in found[amount].items()
        if peer != "hf_prune"
    ]


_AMOUNTS = {"one n": "for one n", "all n": "for all n"}


def _streamed_measure(found: Figures) -> list[Row]:
    memory, model = found["memory"], _model(found)
    which = "reading" if found["floor, reading (seconds)"] > found["floor, computing (seconds)"] else "computing"
    floor = found[f"floor, {which} (seconds)"]
    other = {"reading": "computing", "computing": "reading"}[which]
    return [
        Row(
            "measuring from disk / the larger floor",
            f"{found['ratio']:.2f} ({_duration(found['seconds'])})",
            f"{model}, {found['tokens']:,} tokens: {which} alone takes {_duration(floor)}, {other} "
            f"{_duration(found[f'floor, {other} (seconds)'])}",
            "≤ 1.3",
        ),
        Row(
            "its peak memory",
            _size(memory["peak resident"]),
            f"a limit of {_size(memory['limit'])} ({memory['enforced by']}); "
            f"{_size(memory['resident after imports'])} are imports",
            f"≤ {_size(memory['limit'])}",
        ),
    ]


def _streamed_surgery(found: Figures) -> list[Row]:
    low, high = found["throughput over cp (min, max)"]
    first, last = found["blocks dropped"]
    dropped = f"{last - first + 1} of {found['model']['layers']} blocks"
    rows = [
        Row(
            "cutting file to file, throughput / `cp`",
            f"{found['throughput over cp (median of pairs)']:.2f} ({low:.2f}–{high:.2f})",
            f"`cp --reflink=never` of as many bytes; {_model(found)} less {dropped}, cold cache, fsync on both sides",
            "≥ 0.85",
        ),
        Row(
            "its bytes read / kept; written / kept",
            f"{found['bytes read over kept']:.4f}; {found['bytes written over kept']:.4f}",
            f"{_size(found['bytes kept'])} of tensors that stay",
        ),
        Row(
            "its memory above imports",
            _size(found["memory above imports (largest)"]),
            f"{_size(found['resident after imports'])} after imports",
            "≤ 80 MB",
        ),
    ]
    if "mergekit" in found:
        peer, whole = found["mergekit"], found["whole command"]
        rows.append(
            Row(
                f"mergekit {peer['versions']['mergekit']} / ours, the same cut",
                f"{found['time of mergekit over ours']:.1f} × the time, "
                f"{found['peak of mergekit over ours']:.1f} × the peak memory",
                f"{_duration(peer['seconds'])} / {_duration(found['with imports (median seconds)'])} with imports; "
                f"the whole command, card and reload check included: {_duration(whole['seconds'])}",
                "> 1 ×",
            )
        )
    return rows


def _range_download(found: Figures) -> list[Row]:
    ranges, whole = found["by ranges"], found["whole"]
    first, last = found["blocks dropped"]
    return [
        Row(
            "pruning from the Hub, bytes of weights sent / kept",
            f"{found['weights sent over kept']:.4f}",
            f"{_model(found)} less {last - first + 1} of {found['model']['layers']} blocks, loopback Hub; "
            f"{found['weights sent over a whole download']:.2f} of a whole download",
            "≤ 1.01",
        ),
        Row(
            "its requests",
            f"{ranges['requests']}, {ranges['requests for weights']} of them for weights",
            f"{whole['requests']} and {whole['requests for weights']} of a whole download",
        ),
    ]


def _pruned_speed(found: Figures) -> list[Row]:
    rows = []
    for kind, ideal in (("prefill", "operations"), ("decode", "bytes of weights")):
        points = [f"{row[f'{kind} over ideal'][0]:.2f}" for row in found["dropped"] if row["share"]]
        shares = [f"{100 * row['share']:.0f} %" for row in found["dropped"] if row["share"]]
        rows.append(
            Row(
                f"{kind} speedup / ideal, {shares[0]} to {shares[-1]} of blocks dropped",
                ", ".join(points),
                f"time in proportion to the {ideal} left; Llama of {found['parameters'] / 1e6:.0f} M parameters, "
                f"{found['dtype']}",
            )
        )
    return rows


def _scaling(found: Figures) -> list[Row]:
    expected = {
        "layers": "1",
        "width": "2",
        "tokens, in sequences of 256": "1",
        "tokens, in one sequence": "1 to 2",
        "number of n": "0",
    }
    rows = []
    for name, theory in expected.items():
        fit = found[name]
        bend = f"; steady from {fit['bends at']:,} on" if fit["bends at"] is not None else ""
        last = fit["exponents between neighbours"][-1]
        rows.append(
            Row(
                f"exponent of time in {name}",
                f"{fit['exponent']:.2f} overall, {last:.2f} at the end",
                f"theory: {theory}; {fit['size'][0]:,} to {fit['size'][-1]:,}{bend}",
            )
        )
    return rows


def _healing(found: Figures) -> list[Row]:
    shape, rows = found["model"], []
    model = f"random Llama, {shape['layers']} blocks of width {shape['width']}, {found['dtype']}"
    for vocabulary, row in found["LoRA on all blocks"].items():
        low, high = row["ratio (min, max)"]
        rows.append(
            Row(
                "healing, tokens/s / a plain loop of PEFT and Trainer",
                f"{row['ratio (median of pairs)']:.2f} ({low:.2f}–{high:.2f}), {row['tokens/s']:,.0f} tokens/s",
                f"{model}, vocabulary {int(vocabulary):,}, LoRA on all blocks; at most "
                f"{_size(row['memory above imports'])} and {_size(row['memory above imports of the plain loop'])}",
                "≥ 1.0",
            )
        )
    kept = f"{found['bytes a stored token']:,} bytes a token"
    for vocabulary, kinds in found["last third"].items():
        for what, row in kinds.items():
            even = row["passes to break even"]
            memory = row["memory above imports"]
            rows.append(
                Row(
                    f"its frozen prefix stored / computed each time, last third trained ({what})",
                    f"{row['ratio']:.2f}, "
                    + ("does not break even" if even is None else f"breaks even after {even:.1f} passes"),
                    f"vocabulary {int(vocabulary):,}, {found['passes']} passes, the first of which stores ({kept}); "
                    f"operations allow {row['ideal by operations']:.2f}, the head takes "
                    f"{100 * row['share of the head in all operations']:.0f} % of them; at most "
                    f"{_size(memory['store'])} and {_size(memory['recompute'])}",
                    "≥ 1.5",
                )
            )
    for what, row in found["last third, KL to the original in memory"].items():
        memory = row["memory above imports"]
        rows.append(
            Row(
                f"its frozen prefix computed by the original for both, KL, last third trained ({what})",
                f"{row['ratio']:.2f}",
                f"operations allow {row['ideal by operations']:.2f}; at most {_size(memory['share'])} and "
                f"{_size(memory['recompute'])}",
            )
        )
    return rows


def _gpu(found: Figures) -> list[Row]:
    resident, moved, healing = found["resident"], found["streamed"], found["healing"]
    middle, low, high = resident["over a bare forward (median, min, max)"]
    model = f"{_model(found)}, {found['tokens']:,} tokens"
    return [
        Row("measuring / bare forward", f"{middle:.2f} ({low:.2f}–{high:.2f})", model, "≤ 1.05"),
        Row(
            "measuring from disk / resident",
            f"{moved['over resident']:.2f} ({_duration(moved['seconds'])}), at most {_size(moved['memory']['peak'])}",
            f"{resident['seconds (median)']:.2f} s and {_size(resident['memory']['peak'])} resident; warm page cache",
        ),
        Row(
            "weights moved to the GPU / ceiling",
            f"{moved['moved over that ceiling']:.2f} ({moved['weights moved (GB/s)']:.1f} GB/s)",
            f"{moved['copies from pinned memory (GB/s)']:.1f} GB/s from pinned memory; the disk gives "
            f"{moved['reading the files from the disk (GB/s)']:.1f} GB/s",
        ),
        Row(
            "healing (LoRA), tokens/s",
            f"{healing['tokens/s']:,.0f}, at most {_size(healing['memory']['peak'])}",
            f"rank {healing['rank']}, {healing['tokens']:,} tokens",
        ),
    ]


ROWS: dict[str, Callable[[Figures], list[Row]]] = {
    "measure": _measure,
    "peers": _peers,
    "streamed-measure": _streamed_measure,
    "streamed-surgery": _streamed_surgery,
    "range-download": _range_download,
    "pruned-speed": _pruned_speed,
    "scaling": _scaling,
    "healing": _healing,
    "gpu": _gpu,
}
"""What each benchmark gives to the table, in the table's order."""


def _model(found: Figures) -> str:
    model = found["model"]
    return f"random Llama of {model['parameters'] / 1e9:.2g} B parameters ({_size(model['bytes'])} in bf16)"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"


if __name__ == "__main__":
    sys.stdout.write(render(load()) + "\n")
