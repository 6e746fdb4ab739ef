import dataclasses

import pytest
import torch

from hf_prune.card_tables import generations
from hf_prune.config import EvaluationConfig
from hf_prune.environment import describe
from hf_prune.errors import DataError, MeasureError
from hf_prune.evaluation import evaluate, evaluate_original, measure_text, table
from hf_prune.evaluation.fidelity import Reference
from hf_prune.evaluation.timing import Contestant, take_turns
from hf_prune.records import Completion, Evaluation, Rate
from hf_prune.writing import departures, distinct, repetition

from ..tiny import tiny_model
from .text import VOCAB, byte_tokenizer, poem

LABELS = {"original": 4, "pruned": 2, "healed": 2}
CONFIG = EvaluationConfig(max_length=16, stride=8, prompts=("The sea", "in the"), new_tokens=5)


def model_of(seed=0, depth=4):
    return tiny_model("llama", depth, seed=seed, vocab_size=VOCAB)


def texts():
    return {"poem": poem(), "last line": poem(poem_lines())}


def poem_lines():
    return ("and then the wind was gone, and the sea was still.", "It rained.")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Original, then the same object with blocks gone, then another: one call each, the reference by way of a file."""
    model, tokenizer = model_of(), byte_tokenizer()
    original, reference = evaluate_original(model, tokenizer, texts(), CONFIG)
    path = tmp_path_factory.mktemp("run") / "reference.safetensors"
    reference.save(path)
    del model.model.layers[1:3]
    for index, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = index
    model.config.num_hidden_layers = 2
    pruned = evaluate(model, tokenizer, texts(), CONFIG, label="pruned", reference=Reference.load(path))
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight.mul_(0.9)
    healed = evaluate(model, tokenizer, texts(), CONFIG, label="healed", reference=Reference.load(path))
    contestants = [Contestant(label, lambda depth=depth: model_of(depth=depth)) for label, depth in LABELS.items()]
    timings = take_turns(contestants, CONFIG)
    figures = zip(timings, (original, pruned, healed), strict=True)
    return Evaluation(tuple(timing.added_to(model) for timing, model in figures), describe(model))


def test_each_model_has_its_figures(evaluation):
    original, pruned, healed = evaluation.models
    assert [m.label for m in evaluation.models] == ["original", "pruned", "healed"]
    assert [m.layers for m in evaluation.models] == [4, 2, 2]
    assert original.parameters > pruned.parameters == healed.parameters
    assert original.bytes == 4 * original.parameters
    assert original.fidelity is None
    assert pruned.fidelity.kl > 0 and healed.fidelity.kl != pruned.fidelity.kl
    assert pruned.fidelity.tokens == original.perplexity[0].tokens  # of the first text
    assert pruned.fidelity.top_k_tokens == pruned.fidelity.tokens and pruned.fidelity.top_k == CONFIG.top_k
    assert len(pruned.fidelity.sequence_kl) == len(poem().sequences)
    for model in evaluation.models:
        assert [p.name for p in model.perplexity] == ["poem", "last line"]
        assert [c.prompt for c in model.completions] == list(CONFIG.prompts) * 2
        assert [(c.kind, c.seed) for c in model.completions] == [
            ("greedy", None), ("greedy", None), ("sampled", 0), ("sampled", 1)
        ]  # fmt: skip
        assert model.speed.prompt_tokens == 16 and model.speed.new_tokens == 5
        assert model.peak_memory >= model.bytes
        assert model.dtype == "float32"


def test_figures_are_those_of_one_pass(evaluation):
    expected = measure_text(model_of(), byte_tokenizer(), poem(), name="poem", window=16, stride=8, batch_size=4)
    assert evaluation.models[0].perplexity[0] == expected.perplexity


def test_the_record_survives_a_file(evaluation, tmp_path):
    evaluation.save(tmp_path)
    assert Evaluation.load(tmp_path) == evaluation


def test_one_forward_pass_a_batch_and_text():
    model = model_of()
    shapes = []
    model.model.layers[0].register_forward_hook(lambda _, args, __: shapes.append(args[0].shape[:2]))
    config = dataclasses.replace(CONFIG, prompts=(), speed=False, batch_size=100, max_length=8, stride=4)
    _, reference = evaluate_original(model, byte_tokenizer(), {"poem": poem()}, config)
    windows = sum(1 + max(0, -(-(len(ids) - 1 - 8) // 4)) for ids in poem().sequences)
    assert shapes[0] == (windows, 8)
    assert sum(s == shapes[0] for s in shapes) == 1
    del shapes[:]
    evaluate(model, byte_tokenizer(), {"poem": poem()}, config, label="pruned", reference=reference)
    assert sum(s == (windows, 8) for s in shapes) == 1


def test_what_was_not_asked_for_is_left_out():
    config = dataclasses.replace(CONFIG, prompts=(), speed=False)
    found = evaluate(model_of(), byte_tokenizer(), {"poem": poem()}, config, label="pruned")
    assert found.speed is None and found.fidelity is None and found.completions == ()
    assert found.peak_memory >= found.bytes


def test_broken_weights_are_told_before_anything_is_sampled():
    """Sampling from NaN fails within torch, on a GPU for good."""
    model = model_of(depth=2)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(MeasureError, match="text 'poem': the logits hold NaN or infinity"):
        evaluate_original(model, byte_tokenizer(), texts(), CONFIG)


def test_no_text_is_refused():
    with pytest.raises(DataError, match="no text to evaluate the original"):
        evaluate_original(model_of(), byte_tokenizer(), {}, CONFIG)


def test_the_table_shows_every_figure(evaluation):
    lines = table(evaluation).splitlines()
    original, pruned, healed = evaluation.models
    assert lines[0].split() == ["original", "pruned", "healed"]
    rows = {line.split("   ")[0]: line for line in lines[2 : lines.index("")]}
    assert rows["layers"].split() == ["layers", "4", "2", "(−50.0", "%)", "2", "(−50.0", "%)"]
    first = original.perplexity[0]
    change = f"{pruned.perplexity[0].bits_per_byte / first.bits_per_byte - 1:+.1%}".replace("-", "−").replace(
        "%", " %"
    )
    assert f"{first.bits_per_byte:.4f}" in rows["bits per byte, poem"]
    assert f"{pruned.perplexity[0].bits_per_byte:.4f} ({change})" in rows["bits per byte, poem"]
    assert f"{healed.fidelity.kl:.4f} ± {healed.fidelity.kl_standard_error:.4f}" in rows["KL from original, nats"]
    assert f"{pruned.fidelity.top1_agreement:.1%}" in rows["same first choice"]
    assert f"{pruned.fidelity.top5_agreement:.1%}" in rows["shared of first five"]
    assert set(rows) >= {"parameters", "weights, bytes", "peak memory, bytes", "perplexity, poem", "prefill, tokens/s"}
    assert rows["distinct-1"].split()[1:] == [f"{distinct(m.completions, 1):.3f}" for m in evaluation.models]
    parted = [departures(original, m) for m in (pruned, healed)]
    shown = [", ".join("never" if i is None else str(i) for i in p) for p in parted]
    assert rows["leaves the original at token"].split("   ", 1)[1].split() == " ".join(shown).split()
    text = "\n".join(lines)
    assert f"poem: {first.tokens} predicted tokens ({first.bytes} bytes), window 16, stride 8" in text
    assert f"{pruned.fidelity.kl_top_k:.4f}" in rows["KL of the 64 likeliest"]
    assert f"{repetition(pruned.completions, kind='sampled'):.1%}" in rows["repeated 4-grams, sampled"]
    less = pruned.flops_per_token / original.flops_per_token - 1
    assert f"({less:+.1%})".replace("-", "−").replace("%", " %") in rows["FLOPs per token"]
    fast = pruned.speed.prefill.median / original.speed.prefill.median - 1
    assert f"({fast:+.1%})".replace("-", "−").replace("%", " %") in rows["prefill, tokens/s"]
    assert "on disk, bytes" not in rows and "load, s" not in rows  # models in memory
    assert f"KL: {first.tokens} of those tokens; first choices: {first.tokens}; KL of the 64 likeliest" in text
    assert "4 of 4 sequences begin with BOS, which is context only; ± is" in text
    assert "speed: batch 1, 16 tokens read and 5 written, median of 10 runs" in text
    assert "in 2 rounds, in which the models took turns" in text
    assert f"healing won back {evaluation.recovered:.1%}".replace("%", " %") in text


def test_the_table_warns_of_collapse(evaluation):
    calm, stuck = Completion("Say:", "all sorts", tuple(range(12))), Completion("Say:", "the the", (7,) * 12)
    wrote = [
        dataclasses.replace(m, completions=(c,)) for m, c in zip(evaluation.models, (calm, stuck, calm), strict=True)
    ]
    told = [
        line for line in table(dataclasses.replace(evaluation, models=tuple(wrote))).splitlines() if "WARN" in line
    ]
    assert told == ["WARNING: free generation of the pruned model has collapsed into repetition"]


def test_sampled_text_is_labelled_and_warned_of(evaluation):
    calm = (
        Completion("Say:", "all sorts", tuple(range(12))),
        Completion("Say:", "others", (1, 2, 3, 4), "sampled", 7),
    )
    stuck = (calm[0], Completion("Say:", "the the", (7,) * 12, "sampled", 7))
    wrote = [
        dataclasses.replace(m, completions=c) for m, c in zip(evaluation.models, (calm, stuck, calm), strict=True)
    ]
    lines = table(dataclasses.replace(evaluation, models=tuple(wrote))).splitlines()
    assert "WARNING: sampled text of the pruned model has collapsed into repetition" in lines
    at = lines.index("  sampled with seed 7:")
    assert "all sorts" in lines[at - 2] and "the the" not in "".join(lines[:at])
    assert lines[at + 2].split() == ["others", "the", "the", "others"]


def test_the_card_labels_sampled_text(evaluation):
    kinds = (Completion("Say:", "one"), Completion("Say:", "two", (), "sampled", 7))
    models = tuple(dataclasses.replace(m, completions=kinds) for m in evaluation.models[:2])
    ((prompt, answers),) = generations(dataclasses.replace(evaluation, models=models))
    assert "Say:" in prompt
    assert [(label, text.split()[1]) for label, text in answers] == [
        ("original", "one"),
        ("pruned", "one"),
        ("original, sampled with seed 7", "two"),
        ("pruned, sampled with seed 7", "two"),
    ]


@pytest.mark.parametrize("changes", [{"rounds": 1}, {"batch": 2}, {"prompt_tokens": 9}, {"runs": 5}])
def test_no_model_is_called_faster_that_did_not_take_turns(evaluation, changes):
    first, *others = evaluation.models
    load = Rate(1.0, 0.5, 2.0)
    for alone in ((first,), tuple(evaluation.models)):
        models = [
            dataclasses.replace(m, load=load, speed=dataclasses.replace(m.speed, **(changes if m in alone else {})))
            for m in evaluation.models
        ]
        rows = [
            line
            for line in table(dataclasses.replace(evaluation, models=tuple(models))).splitlines()
            if line.startswith(("prefill", "decode", "load, s"))
        ]
        assert len(rows) == 3
        assert any("%)" in row for row in rows) == (len(alone) == 3 and changes != {"rounds": 1})


def test_columns_line_up(evaluation):
    lines = table(evaluation).splitlines()
    heads = [lines[0].index(m.label) for m in evaluation.models]
    assert [i for i in range(1, len(lines[1])) if lines[1][i - 1] == " " and lines[1][i] == "─"] == heads
    kl = next(line for line in lines if line.startswith("KL from"))
    assert kl[heads[0] : heads[1]].strip() == ""
    assert [kl[h] != " " and kl[h - 1] == " " for h in heads[1:]] == [True, True]


def written(evaluation, texts):
    models = tuple(
        dataclasses.replace(m, completions=(Completion("Say:", t),))
        for m, t in zip(evaluation.models, texts, strict=True)
    )
    return table(dataclasses.replace(evaluation, models=models), width=62)


def test_completions_stand_side_by_side(evaluation):
    lines = written(evaluation, ("one two three four five", "six", "")).splitlines()
    start = lines.index("» Say:")
    assert lines[start + 1].split() == ["original", "pruned", "healed"]
    assert lines[start + 2] == "one two three four   six"
    assert lines[start + 3] == "five"


def test_nothing_a_terminal_would_obey_gets_through(evaluation):
    hostile = "a\x1b[31mred\x1b]0;title\x07\r\nb\u202ec\x9b2J"
    shown = written(evaluation, (hostile, hostile, hostile))
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "[31mred" in shown


@pytest.mark.parametrize("labels", [("pruned",), ("original",), ("pruned", "healed"), ("original", "pruned")])
def test_the_table_takes_what_there_is(evaluation, labels):
    models = tuple(m for m in evaluation.models if m.label in labels)
    shown = table(dataclasses.replace(evaluation, models=models))
    assert shown.split()[: len(labels)] == list(labels)
    assert ("%)" in shown) == ("original" in labels and len(labels) > 1)
    assert "won back" not in shown


def test_huge_and_missing_figures_stay_readable(evaluation):
    original, pruned, healed = evaluation.models
    broken = dataclasses.replace(pruned.perplexity[0], perplexity=original.perplexity[0].perplexity * 1e9)
    pruned = dataclasses.replace(pruned, perplexity=(broken,), speed=None)
    shown = table(dataclasses.replace(evaluation, models=(original, pruned, healed)))
    assert "(×1e+09)" in shown
    assert max(len(line) for line in shown.splitlines()) < 160
