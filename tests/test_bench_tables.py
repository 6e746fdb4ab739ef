"""Ranking, tables and the drawing of comparisons, on figures that were made by hand."""

import csv
import dataclasses
import io
import math
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from hf_prune.comparing.drawing import draw
from hf_prune.comparing.record import Attempt, Comparison, Contender, Effort
from hf_prune.comparing.standings import Standing, kl, perplexity, standings
from hf_prune.comparing.table import as_csv, as_markdown, shown
from hf_prune.comparing.words import amount_in_words, contents, share_in_words
from hf_prune.figures import ModelEvaluation, Perplexity
from hf_prune.units import Unit
from tests.making import ENVIRONMENT, TEXT, reference
from tests.test_sweep_parts import figures, task

HEALING = {"rank": 64, "target": "mlp", "learning_rate": 0.003, "tokens": 300000}


def contender(name: str) -> Contender:
    return Contender(name, f"The {name} way", f"https://arxiv.org/abs/{name}", "loss", "greedy", "drop")


def judged(nll: float, label: str = "pruned", accuracy: float = 0.6, wiki: float = 1.0) -> ModelEvaluation:
    """Figures on two texts, with one task."""
    found: ModelEvaluation = figures(nll, None if label == "original" else nll - 2, (task("blimp", accuracy),), label)
    other: Perplexity = dataclasses.replace(
        found.perplexity[0], name="wiki", nll=nll + wiki, perplexity=math.exp(nll + wiki)
    )
    return dataclasses.replace(found, perplexity=(found.perplexity[0], other))


def attempt(method: str, seed: int, before: float, after: float | None = None, **fields: Any) -> Attempt:
    given: dict[str, Any] = {
        "amount": 2.0,
        "amount_of": "blocks",
        "status": "done",
        "removed": (Unit(3), Unit(4)),
        "reason": "They were asked for.",
        "parameters": 714,
        "bytes": 2856,
        "share_removed": 0.286,
        "choosing": Effort(1.5 + seed, 10**6, 5.5),
        "cutting": Effort(0.25, 10**5),
        "pruned": judged(before),
        "healed": None if after is None else judged(after, "healed"),
        "healing_tokens": None if after is None else 300000,
        "healing_seconds": None if after is None else 60.0 + seed,
        "seconds": 99.0,
    }
    return Attempt(f"{method}-2-s{seed}", method, seed, **given | fields)


def failed(method: str, seed: int, message: str = "layer 2 gives NaN", status: Any = "failed") -> Attempt:
    return Attempt(f"{method}-2-s{seed}", method, seed, 2.0, "blocks", status, message)


def compared(*attempts: Attempt, heal: bool = True, **fields: Any) -> Comparison:
    methods = tuple(dict.fromkeys(a.method for a in attempts))
    seeds = tuple(dict.fromkeys(a.seed for a in attempts))
    made = Comparison(
        reference(8), {}, tuple(contender(m) for m in methods), seeds, None, heal, HEALING if heal else None,
        {"calibration, seed 0": TEXT}, judged(2.0, "original"), attempts, (), ENVIRONMENT,
    )  # fmt: skip
    return dataclasses.replace(made, **fields)


FOUND = compared(
    attempt("first", 0, 2.5, 2.4), attempt("broken", 0, 9.0, status="failed", message="no | luck", pruned=None),
    attempt("best", 0, 2.9, 2.1), attempt("once", 0, 2.2, 2.3), failed("never", 0, status="skipped"),
    attempt("best", 1, 2.7, 2.2), attempt("first", 1, 2.5, 2.6), failed("best", 2),
)  # fmt: skip


def rows_of(markdown: str, heading: str) -> list[list[str]]:
    """Cells of the table below a heading, without the line that divides it."""
    lines = markdown.split(f"## {heading}\n\n", 1)[1].splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (table[0], *table[2:])]


def test_methods_are_ranked_by_what_is_shipped_and_missing_ones_come_last() -> None:
    assert [s.contender.name for s in standings(FOUND)] == ["best", "once", "first", "broken", "never"]
    # Without healing, by what pruning left.
    plain = dataclasses.replace(FOUND, heal=False)
    assert [s.contender.name for s in standings(plain)] == ["once", "first", "best", "broken", "never"]


@given(st.lists(st.floats(0.5, 8.0), min_size=1, max_size=8))
def test_order_is_that_of_the_means(losses: list[float]) -> None:
    found = compared(*(attempt(f"m{i}", 0, 5.0, loss) for i, loss in enumerate(losses)))
    order = [s.figure("healed", perplexity(0)) for s in standings(found)]
    values = [mean.value for mean in order if mean is not None]
    assert len(values) == len(losses) and values == sorted(values)


def test_means_and_spreads_are_over_the_finished_seeds() -> None:
    best = standings(FOUND)[0]
    mean = best.figure("healed", perplexity(0))
    values = [math.exp(2.1), math.exp(2.2)]
    assert mean is not None and mean.count == 2
    assert mean.value == pytest.approx(statistics.mean(values)) and mean.spread == pytest.approx(
        statistics.stdev(values)
    )
    once = standings(FOUND)[1].figure("pruned", kl)
    assert once is not None and (once.count, once.spread) == (1, None) and once.value == pytest.approx(0.2)
    # A figure that one seed lacks has no mean: it would be one over other seeds than the rest.
    half = Standing(contender("half"), (attempt("half", 0, 2.5, 2.4), attempt("half", 1, 2.5)))
    assert half.figure("healed", kl) is None and half.figure("pruned", kl) is not None


def test_the_table_says_what_the_record_says() -> None:
    text = as_markdown(FOUND)
    header, original, *lines = rows_of(text, "Figures")
    assert header[:4] == ["", "method", "seeds", "before healing: perplexity, books"]
    assert header[4:8] == [f"before healing: {n}" for n in ("perplexity, wiki", "KL", "top-1", "accuracy")]
    assert header[8] == "healed: perplexity, books" and len(header) == 13
    assert original[1] == "original" and original[3:5] == [f"{math.exp(2):.2f}", f"{math.exp(3):.2f}"]
    assert original[7] == "0.6000" and original[8:] == [""] * 5
    assert [line[0] for line in lines] == ["1", "2", "3", "", ""]
    assert lines[0][1] == "[best](https://arxiv.org/abs/best)"
    assert [line[2] for line in lines] == ["2 of 3", "1", "2", "failed", "skipped"]
    for line, standing in zip(lines, standings(FOUND), strict=True):
        for column, stage in ((3, "pruned"), (8, "healed")):
            assert line[column] == shown(standing.figure(stage, perplexity(0)), ".2f")  # type: ignore[arg-type]
            assert line[column + 1] == shown(standing.figure(stage, perplexity(1)), ".2f")  # type: ignore[arg-type]
    assert lines[1][8] == f"{math.exp(2.3):.2f}" and "±" in lines[0][8]
    _, *efforts = rows_of(text, "What went, and what it took")
    assert efforts[0] == [
        "best", "blocks 3–4 (2 of 8)", "−28.6%", "`loss` → `greedy` → `drop`", "2.00 ± 0.71", "5.50 ± 0.00",
        "1.00 ± 0.00", "0.25 ± 0.00", "60.50 ± 0.71",
    ]  # fmt: skip
    assert len(efforts) == 3
    assert "- `broken-2-s0` failed: no &#124; luck" in text and "- `never-2-s0` skipped: " in text
    assert "LoRA of rank 64 on mlp, learning rate 0.003, at most 300,000 tokens" in text
    assert "`blimp` (100 questions)" in text and "Seeds 0, 1, 2." in text and ENVIRONMENT.hardware in text


def test_without_healing_the_table_speaks_of_none() -> None:
    text = as_markdown(compared(attempt("only", 0, 2.5), heal=False))
    header, _, line = rows_of(text, "Figures")
    assert header[3:] == ["perplexity, books", "perplexity, wiki", "KL", "top-1", "accuracy"] and line[0] == "1"
    assert "heal" not in text.lower().replace("healed-", "") and "±" not in text


def test_names_of_strangers_do_nothing_in_the_table() -> None:
    evil = "<script>|# [x](http://evil)"
    found = compared(attempt("only", 0, 2.5), failed("other", 0, evil), heal=False, model=reference(8, id=evil))
    text = as_markdown(found)
    assert "<script>" not in text and "](http://evil)" not in text


def test_csv_says_what_the_record_says() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(FOUND))))
    assert [(r["attempt"], r["stage"]) for r in rows[:4]] == [
        ("original", "original"), ("first-2-s0", "pruned"), ("first-2-s0", "healed"), ("broken-2-s0", ""),
    ]  # fmt: skip
    assert rows[3]["message"] == "no | luck" and rows[3]["perplexity"] == "" and rows[3]["status"] == "failed"
    done = iter(rows[1:])
    for one in FOUND.attempts:
        for stage in ("pruned", "healed"):
            model = one.figures(stage)  # type: ignore[arg-type]
            if one.status != "done" or model is None:
                continue
            row = next(r for r in done if r["status"] == "done")
            assert (row["attempt"], row["stage"], int(row["seed"])) == (one.name, stage, one.seed)
            assert float(row["perplexity"]) == model.perplexity[0].perplexity
            assert float(row["perplexity:wiki"]) == model.perplexity[1].perplexity
            assert float(row["task:blimp:acc"]) == model.tasks[0].value
            assert one.choosing is not None and float(row["choosing_seconds"]) == one.choosing.seconds
            assert int(row["choosing_memory"]) == one.choosing.memory and float(row["choosing_forwards"]) == 5.5
            assert (
                row["healing_tokens"] == ("300000" if stage == "healed" else "")
                and row["removed"] == "block 3; block 4"
            )
            assert float(row["perplexity_ratio"]) == math.exp(model.perplexity[0].nll - 2.0)


def test_record_survives_its_file(tmp_path: Any) -> None:
    FOUND.save(tmp_path)
    again = Comparison.load(tmp_path)
    assert again == FOUND and again.attempts[0].removed == (Unit(3), Unit(4))
    assert as_markdown(again) == as_markdown(FOUND) and as_csv(again) == as_csv(FOUND)


def test_the_drawing_holds_every_method_that_is_done() -> None:
    (png, drawn), (svg, vector) = draw(FOUND)
    assert (png.file, svg.file) == ("comparison.png", "comparison.svg")
    image = imread(io.BytesIO(drawn))
    assert image.shape[1:] == (840, 4) and image.std() > 0.05 and vector.startswith(b"<svg")
    assert f"original {math.exp(2):.4g}; best pruned" in png.alt and "never" not in png.alt
    assert f"once pruned {math.exp(2.2):.4g}, healed {math.exp(2.3):.4g}; first" in png.alt
    assert "Accuracy, mean of 1 task: original 0.6;" in png.alt
    assert draw(FOUND) == draw(FOUND)
    assert draw(compared(failed("only", 0))) == []


@pytest.mark.parametrize(
    ("fields", "what", "share"),
    [
        ({}, "blocks 3–4 (2 of 8)", "−28.6%"),
        ({"removed": (), "widths": (24, 24), "share_removed": -0.05}, "width 24", "+5.0%"),
        ({"removed": (), "widths": (24, 28)}, "width 24–28", "−28.6%"),
        (
            {"removed": (Unit(2, "attention"), Unit(3, "attention")), "share_removed": 0.0, "share_silent": 0.05},
            "attention 2–3 (2 of 8 parts)",
            "0.0% (5.0% silent)",
        ),
        (
            {"removed": (Unit(2, "attention"), Unit(3, "mlp"), Unit(4, "mlp"))},
            "attention 2, MLP 3–4 (3 of 16 parts)",
            "−28.6%",
        ),
        (
            {"removed": (), "amount": 0.5, "amount_of": "weights", "share_removed": 0.0},
            "50.0% of the weights",
            "0.0%",
        ),
    ],
)
def test_what_went_in_words(fields: dict[str, Any], what: str, share: str) -> None:
    one = attempt("m", 0, 2.5, **fields)
    assert contents(one, 8) == what and share_in_words(one) == share


def test_amounts_in_words() -> None:
    assert [amount_in_words(*given) for given in ((1.0, "blocks"), (4.0, "MLPs"), (1 / 3, "width"))] == [
        "1 block", "4 MLPs", "33.3% of the width",
    ]  # fmt: skip
