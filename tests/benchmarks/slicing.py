"""What slicing loses: bits per byte at equal width and at equal parameters, schedules and bases beside layer dropping.

`python -m tests.benchmarks slicing --calibration FILES --text FILE`: on the embedded model, in float32. Calibrated on
one text (schedules are chosen on a part of it that is held out), judged on another.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_prune import calibration, demo, loading, prune_layers
from hf_prune.amounts import Sizes
from hf_prune.architecture import decoder_of
from hf_prune.architecture.decoder import structural_copy
from hf_prune.config import CalibrationConfig, PrunerConfig
from hf_prune.evaluation.perplexity import measure_text
from hf_prune.measure import measure_model
from hf_prune.methods import get_method
from hf_prune.plan import make_plan
from hf_prune.planners.widths import constant_width, dynamic_width
from hf_prune.records import Scores
from hf_prune.samples import Samples
from hf_prune.slicing.budget import Budget, make_budget
from hf_prune.slicing.options import SliceOptions
from hf_prune.slicing.read_costs import costs_of_config, count_parameters
from hf_prune.surgery.slice import Text, slice_widths

WIDTHS, PARAMETERS = (0.20, 0.25, 0.30), (0.10, 0.20, 0.30)


class Bench:
    """The embedded model, its texts and scores."""

    def __init__(self, calibration_text: Path, judged_on: Path) -> None:
        self.source, _ = loading.locate(demo.model_folder(), base_model="demo/gutenberg-llama-12l")
        self.tokenizer = loading.load_tokenizer(self.source)
        self.model = loading.load_model(self.source, dtype=torch.float32)
        self.decoder = decoder_of(self.model, "gutenberg-llama-12l")
        self.costs = costs_of_config(self.decoder.config, "gutenberg-llama-12l")
        read = self._load(calibration_text, 160)
        self.calibration, self.selection = read.part(0, 128), read.part(128, len(read.sequences))
        self.judged = self._load(judged_on, 96)
        self.text = Text(self.calibration.sequences)

    def _load(self, text: Path, samples: int) -> Samples:
        config = CalibrationConfig(dataset=str(text), samples=samples, max_length=256)
        method = get_method("uidl")
        return calibration.load(
            config, stage="calibration", method=method, tokenizer=self.tokenizer, limit=512, shared=False
        )

    def scores(self, measure: str) -> Scores:
        """What a measure says of the original."""
        return measure_model(self.decoder, self.calibration, model=self.source.ref, name=measure)

    def loss(self, model: Any, samples: Samples) -> Any:
        """Perplexity record of a model."""
        return measure_text(model, self.tokenizer, samples, name="text", window=256).perplexity

    def row(self, name: str, model: Any, seconds: float | None = None) -> dict[str, Any]:
        """One line of the table."""
        judged, selected = self.loss(model, self.judged), self.loss(model, self.selection)
        sys.stderr.write(f"{name}: {judged.bits_per_byte:.4f} bits per byte\n")
        parameters = count_parameters(model)
        return {
            "model": name,
            "parameters": parameters,
            "fewer": round(1 - parameters / self.costs.original, 4),
            "bits per byte": round(judged.bits_per_byte, 4),
            "nats per token": round(judged.nll, 4),
            "standard error": round(judged.standard_error, 4),
            "perplexity": round(judged.perplexity, 2),
            "nats on the selection text": round(selected.nll, 4),
            "seconds": None if seconds is None else round(seconds, 1),
        }

    def budget(self, share: float, of: Any, **options: Any) -> Budget:
        """How much goes."""
        return make_budget(
            self.costs,
            name="gutenberg-llama-12l",
            model_type="llama",
            sparsity=share,
            of=of,
            options=SliceOptions(**options),
        )

    def slice(self, budget: Budget, widths: tuple[int, ...]) -> tuple[Any, float]:
        """The sliced model, and the seconds it took."""
        started = time.perf_counter()
        sliced = slice_widths(self.decoder, budget.points(widths), self.text, **vars(budget.options))
        return sliced, time.perf_counter() - started

    def sliced(self, share: float, of: Any, redundancy: Scores) -> Iterator[dict[str, Any]]:
        """All ways of slicing at one amount."""
        ways: list[tuple[str, dict[str, Any]]] = [
            ("constant", {}),
            ("constant, untied", {"tied": False}),
            ("global, plain", {"basis": "global"}),
            ("global, tied", {"basis": "global", "tied": True}),
        ]
        if of == "width":
            ways.append(("constant, tokens of equal weight", {"weighting": "token"}))
        for name, options in ways:
            budget = self.budget(share, of, **options)
            widths = constant_width(budget, None, None).widths
            yield self.row(f"{name} ({widths[0]})", *self.slice(budget, widths))
        budget = self.budget(share, of)
        lines = []
        for schedule in dynamic_width(budget, redundancy, lambda points: (0.0, 0.0)).search:
            sliced, seconds = self.slice(budget, schedule.widths)
            name = f"dynamic, slice base {schedule.base:.2f} ({min(schedule.widths)} to {max(schedule.widths)})"
            lines.append(self.row(name, sliced, seconds))
        yield from lines[1:]
        yield min(lines, key=lambda line: line["nats on the selection text"]) | {"model": "searched"}

    def dropped(self, count: int, angles: Scores) -> dict[str, Any]:
        """Layers dropped by angle."""
        plan = make_plan(PrunerConfig(drop_layers=count), self.source.ref, Sizes((), (), 0, 0), angles)
        model = prune_layers(structural_copy(self.model), plan.dropped)
        return self.row(f"{count} layers dropped by angle ({plan.dropped[0]}-{plan.dropped[-1]})", model)


def main(calibration_text: Path, judged_on: Path) -> dict[str, Any]:
    """Run it.

    Args:
        calibration_text: file or folder.
        judged_on: file that was neither trained nor calibrated on.
    """
    bench = Bench(calibration_text, judged_on)
    redundancy, angles = bench.scores("redundancy"), bench.scores("angular")
    found: dict[str, Any] = {
        "calibration tokens": bench.calibration.tokens,
        "judged tokens": bench.judged.tokens,
        "redundancy (cosines)": [round(value, 4) for value in redundancy.layers],
        "original": bench.row("original", bench.model),
    }
    for share in WIDTHS:
        found[f"{share:.0%} of the width"] = list(bench.sliced(share, "width", redundancy))
    block = sum(parameter.numel() for parameter in bench.decoder.blocks[0].parameters())
    for share in PARAMETERS:
        drops = max(1, round(share * bench.costs.original / block))
        rows = list(bench.sliced(share, "parameters", redundancy))
        found[f"{share:.0%} of the parameters"] = [*rows, bench.dropped(drops, angles)]
    return found
