"""The demo, stage by stage: seconds, and the loss of original, pruned and healed model on two texts."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hf_prune import Pruner, calibration, demo
from hf_prune.config import CalibrationConfig
from hf_prune.evaluation.perplexity import measure_text
from hf_prune.methods import get_method
from hf_prune.samples import Samples

T = TypeVar("T")


def main(text: Path | None) -> dict[str, Any]:
    """Run the demo's stages.

    Args:
        text: a text file or folder to judge the three models on as well, such as a book that was not trained on.
    """
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        seconds[name] = round(time.perf_counter() - started, 1)
        return result

    other: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        pruner = Pruner.from_pretrained(demo.model_folder(), demo.config(), progress=False)
        samples = None if text is None else _load(pruner, text)
        timed("load the model", lambda: pruner.model)
        timed("sample calibration text", pruner.texts.calibration)
        timed("measure", pruner.measure)
        plan = timed("plan", pruner.plan)
        timed("sample evaluation text", pruner.texts.evaluation)
        timed("evaluate the original", lambda: pruner.evaluate_as("original"))
        reference = _judge(pruner, samples, "original", other)
        timed("sample healing text", pruner.prepare_healing)
        timed("prune", pruner.prune)
        timed("evaluate the pruned model", lambda: pruner.evaluate_as("pruned"))
        _judge(pruner, samples, "pruned", other, reference)
        healing = timed("heal", pruner.heal)
        timed("evaluate the healed model", lambda: pruner.evaluate_as("healed"))
        _judge(pruner, samples, "healed", other, reference)
        timed("time all three in turns", pruner.evaluate)
        timed("save, reload and card", lambda: pruner.save_pretrained(Path(scratch) / "out"))
        evaluation = pruner.finished().evaluation
    assert evaluation is not None
    own = {m.label: _figures(m.perplexity[0], m.fidelity) for m in evaluation.models}
    return {
        "dropped": plan.dropped,
        "healing tokens": healing.tokens,
        "seconds": {**seconds, "all": round(sum(seconds.values()), 1)},
        "own text": own,
        "recovered on own text": evaluation.recovered,
        "held-out losses": healing.held_out,
        "other text": other,
        "recovered on other text": _recovered(other),
    }


def _load(pruner: Pruner, text: Path) -> Samples:
    config = CalibrationConfig(dataset=str(text), samples=96, max_length=256)
    return calibration.load(
        config, stage="calibration", method=get_method("uidl"), tokenizer=pruner.tokenizer, limit=512
    )


def _judge(pruner: Pruner, samples: Samples | None, label: str, found: dict[str, Any], reference: Any = None) -> Any:
    if samples is None:
        return None
    measured = measure_text(
        pruner.model,
        pruner.tokenizer,
        samples,
        name="other text",
        window=256,
        capture_bytes=None if reference is not None else 256 << 20,
        compare=reference,
    )
    found[label] = _figures(measured.perplexity, measured.fidelity)
    return measured.reference


def _figures(perplexity: Any, fidelity: Any) -> dict[str, Any]:
    return {
        "nats per token": round(perplexity.nll, 4),
        "standard error": round(perplexity.standard_error, 4),
        "perplexity": round(perplexity.perplexity, 2),
        "bits per byte": round(perplexity.bits_per_byte, 4),
        "tokens": perplexity.tokens,
        "kl": None if fidelity is None else round(fidelity.kl, 4),
        "top-1 agreement": None if fidelity is None else round(fidelity.top1_agreement, 4),
    }


def _recovered(found: dict[str, Any]) -> float | None:
    if not found:
        return None
    original, pruned, healed = (found[label]["nats per token"] for label in ("original", "pruned", "healed"))
    return (pruned - healed) / (pruned - original)
