import dataclasses
import json
import math
import re
import shlex

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markdown_it import MarkdownIt

from hf_prune import cards, markdown
from hf_prune.card_commands import ADAPTER_FOLDER
from hf_prune.card_metadata import bare_name, is_hub_id, read_base_card
from hf_prune.card_tables import duration, number, size
from hf_prune.cards import command, generate, inherit
from hf_prune.config import CalibrationConfig, HealingConfig, PrunerConfig
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.output import ADAPTER
from hf_prune.records import (
    Completion,
    Environment,
    Evaluation,
    Fidelity,
    Healing,
    HeldOutLoss,
    ModelEvaluation,
    ModelRef,
    Operation,
    Perplexity,
    Plan,
    Rate,
    Scores,
    Speed,
    TextUse,
)
from hf_prune.saving import RECORDS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENVIRONMENT = Environment("Example CPU, 2 threads", {"hf_prune": "0.1.0", "torch": "2.13.0"}, "float32", "cpu")
HOSTILE = (
    "x\n---\nlicense: evil\n---\n# Owned",
    "{{ 7 * 7 }}{% raw %}{{ config }}",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "a | b || c |",
    "`` ` ``` ```` ``",
    "```\n</code><b>out</b>\n```\n# Owned",
    "~~~\n<b>out</b>",
    "[click](javascript:alert(1)) ![i](http://evil.example/x.png)",
    "https://evil.example www.evil.example <https://evil.example>",
    "\u202eevil\u202c \u200bzero\u2066width\ufeff \U000e0041",
    "a\\|b \\",
    "&lt;script&gt; &#60;script&#62;",
    "'\": !!python/object/apply:os.system ['x'] &a *a %TAG",
    "\r\n\r\n    code\r\n\t- item\r\n1. one\u2028two\u0085three\x00\x1b[31m",
    "- item",
    "# heading",
    "1. one",
    "===",
    "$$x$$ \\(x\\) *em* __strong__ ~~gone~~",
    "A" * 20_000,
    "",
    " ",
    "\ud800",
)


def text_use(**changes):
    use = TextUse("org/texts", "en", "validation", COMMIT, 128, 60_000, 512, 7, "ab" * 32)
    return dataclasses.replace(use, **changes)


def plan(**changes):
    made = Plan(
        model=ModelRef("org/base", COMMIT, "llama", 12),
        method="uidl",
        planner="window",
        operations=(Operation("drop", (3, 4, 5)),),
        reason="the input and the output of these layers are closest",
        distance=0.1234,
        runner_up=(4, 5, 6),
        gap=0.02,
        gap_standard_error=0.004,
        scores="cd" * 32,
    )
    return dataclasses.replace(made, **changes)


def scores(layers=12, **changes):
    distances = tuple(tuple(abs(i - j) / (layers + 1) for j in range(layers + 1)) for i in range(layers + 1))
    errors = tuple(tuple(0.001 for _ in row) for row in distances)
    model = ModelRef("org/base", COMMIT, "llama", layers)
    made = Scores(model, "angular", {}, distances, errors, text_use(), ENVIRONMENT, 12.5)
    return dataclasses.replace(made, **changes)


def healing(**changes):
    made = Healing(
        settings={"rank": 64, "learning_rate": 3e-4, "target": "mlp", "seed": 0, "save_steps": None, "packed": True},
        quantization="nf4 (double quantized)",
        trained_parameters=123_456,
        target_modules=("gate_proj", "up_proj", "down_proj"),
        steps=200,
        tokens=1_000_000,
        seconds=125.0,
        train_loss=3.51,
        held_out=HeldOutLoss(4.1, 4.2, 3.9, 3.85, 3.86, 3.7, 16_384),
        merge_loss_share=0.04,
        output="merged",
        data=text_use(dataset="org/healing", split="train"),
        held_out_data=text_use(split="test"),
        environment=ENVIRONMENT,
        warnings=("The learning rate was lowered once.",),
    )
    return dataclasses.replace(made, **changes)


def perplexity(nll=3.5, **changes):
    tokens, size_ = 50_000, 200_000
    made = Perplexity(
        "The Time Machine",
        nll,
        0.01,
        math.exp(nll),
        nll * tokens / math.log(2) / size_,
        tokens,
        size_,
        512,
        256,
        text_use(),
    )
    return dataclasses.replace(made, **changes)


def model(label, nll=3.5, **changes):
    made = ModelEvaluation(
        label=label,
        layers=12 if label == "original" else 9,
        parameters=5_505_024 if label == "original" else 4_200_000,
        bytes=11_010_048 if label == "original" else 8_400_000,
        peak_memory=400_000_000,
        dtype="bfloat16",
        perplexity=(perplexity(nll),),
        fidelity=None if label == "original" else Fidelity(0.25, 0.01, 0.81, 50_000),
        completions=(Completion("The old man", f" went to sea ({label})."),),
        speed=Speed(Rate(1000, 900, 1100), Rate(50.5, 49, 52), 1, 128, 64, 5, rounds=2),
    )
    return dataclasses.replace(made, **changes)


def evaluation(*models):
    return Evaluation(models or (model("original", 3.5), model("pruned", 4.1), model("healed", 3.7)), ENVIRONMENT)


def config(**changes):
    return PrunerConfig(**{"drop_layers": 3, "base_model": "org/base", "base_revision": COMMIT} | changes)


def full(**changes):
    given_ = {
        "repo_id": "me/base-pruned",
        "scores": scores(),
        "healing": healing(),
        "evaluation": evaluation(),
        "base_card": "---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# Base\n",
        "base_files": ("LICENSE",),
        "reload_level": "full",
        "pictures": True,
    } | changes
    return generate(given_.pop("config", config()), given_.pop("plan", plan()), **given_)


def body(card):
    return REGEX_YAML_BLOCK.sub("", str(card), count=1)


def tokens(text):
    found = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        found += [token, *(token.children or [])]
    return found


def tables_of(text):
    """Every table as rows of rendered cell sources."""
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level >= 4:
            found[-1][-1].append(token.content)
    return found


def check_card(card):
    """What holds for every card, whatever went in."""
    text = str(card)
    text.encode("utf-8")
    found = yaml.safe_load(REGEX_YAML_BLOCK.search(text)[2])
    assert found == card.data.to_dict() == ModelCard(text).data.to_dict()
    assert found.keys() <= {
        "base_model",
        "base_model_relation",
        "datasets",
        "language",
        "library_name",
        "license",
        "license_name",
        "license_link",
        "pipeline_tag",
        "tags",
        "model-index",
    }
    headings = [t for t in tokens(body(card)) if t.type == "heading_open"]
    assert [t.tag for t in headings].count("h1") == 1
    check_markdown(body(card))


DETAILS = r"<details>\n<summary>Parts of the groups \(\d+\)</summary>\n|</details>\n"
PICTURES = ("layers.png", "widths.png", "scores.png", "importance.png", "comparison.png", "recovery.png")


def check_markdown(text):
    allowed = ("https://huggingface.co/", "https://arxiv.org/")
    for token in tokens(text):
        ours = token.type == "html_block" and re.fullmatch(DETAILS, token.content)
        assert ours or token.type not in ("html_block", "html_inline", "s_open", "hr"), token
        if token.type == "link_open":
            assert token.attrs["href"].startswith(allowed), token
        if token.type == "image":
            assert token.attrs["src"] in [f"./{name}" for name in PICTURES] and token.content.strip()
    for rows in tables_of(text):
        assert len({len(row) for row in rows}) == 1
    for char in "\u202e\u2066\u200b\ufeff\x00\x1b":
        assert char not in text


# --- metadata


def test_metadata_of_a_healed_model():
    assert full().data.to_dict() == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "datasets": ["org/healing", "org/texts"],
        "language": ["en"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["hf-prune", "pruned", "layer-pruning", "uidl", "llama"],
        "model-index": [
            {
                "name": "base-pruned",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {
                            "name": "The Time Machine",
                            "type": "org/texts",
                            "config": "en",
                            "split": "validation",
                            "revision": COMMIT,
                        },
                        "metrics": [
                            {
                                "type": "perplexity",
                                "name": "Perplexity (window 512, stride 256)",
                                "value": float(f"{math.exp(3.7):.6g}"),
                            },
                            {
                                "type": "bits_per_byte",
                                "name": "Bits per byte (window 512, stride 256)",
                                "value": float(f"{3.7 / math.log(2) / 4:.6g}"),
                            },
                        ],
                    }
                ],
            }
        ],
    }
    check_card(full())


def test_model_index_describes_the_pruned_weights_where_nothing_was_healed():
    card = full(healing=None, evaluation=evaluation(model("original"), model("pruned", 4.1)))
    values = [m["value"] for m in card.data.to_dict()["model-index"][0]["results"][0]["metrics"]]
    assert values[0] == float(f"{math.exp(4.1):.6g}")
    assert card.data.datasets == ["org/texts"]


def test_unevaluated_shipped_weights_have_no_model_index_and_a_warning():
    card = full(evaluation=evaluation(model("original"), model("pruned")))
    assert "model-index" not in card.data.to_dict()
    assert "The weights in this repository were not evaluated." in body(card)


def test_adapter_metadata_and_code():
    card = full(healing=healing(output="adapter"), output="adapter")
    assert (card.data.library_name, card.data.base_model_relation) == ("peft", "adapter")
    assert f'PeftModel.from_pretrained(model, name, subfolder="{ADAPTER_FOLDER}")' in body(card)
    assert "PeftModel" not in body(full())
    for text in (body(card), body(full()), body(full(repo_id=None))):
        compile(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], "card", "exec")


def test_texts_that_are_no_hub_dataset_are_not_named_as_datasets():
    own = perplexity(name="own", data=text_use(dataset=None, revision=None, config=None, split=None))
    file = perplexity(name="file", data=text_use(dataset="books.txt", revision=None, sha256="cd" * 32))
    models = [model(label, perplexity=(own, file)) for label in ("original", "pruned", "healed")]
    local = text_use(dataset="books.txt", revision=None)
    card = full(
        scores=scores(data=local), healing=healing(data=text_use(dataset=None)), evaluation=evaluation(*models)
    )
    assert "datasets" not in card.data.to_dict()
    results = card.data.to_dict()["model-index"][0]["results"]
    assert [r["dataset"]["type"] for r in results] == ["unknown", "unknown"]
    assert [r["dataset"]["name"] for r in results] == ["own", "file"]
    assert [len(r["metrics"]) for r in results] == [2, 2]
    assert "own is text that the original model wrote itself" in body(card)
    check_card(card)


@pytest.mark.parametrize("name", ["base", "/home/someone/models/base", "C:\\models\\base", "./x/base/", "~/base"])
def test_local_base_is_a_bare_name_with_a_warning(name):
    local = plan(model=ModelRef("base", None, "llama", 12))
    card = full(config=config(base_model=name, base_revision=None), plan=local, repo_id=None)
    assert not {"base_model", "base_model_relation"} & card.data.to_dict().keys()
    assert "The base was a local model named base" in body(card)
    assert "hf-prune run base " in body(card)
    assert "someone" not in str(card) and "models" not in card.data.to_dict()
    assert "home" not in str(card)
    assert body(card).lstrip().startswith("# base-pruned\n")


def test_base_model_given_for_a_folder_is_linked():
    card = full(config=config(base_revision=None), plan=plan(model=ModelRef("folder", None, "llama", 12)))
    assert card.data.base_model == "org/base"
    assert "[org/base](https://huggingface.co/org/base)" in body(card)


def test_name_without_owner_is_a_hub_id_only_with_a_commit():
    assert is_hub_id("gpt2", COMMIT) and not is_hub_id("gpt2", None)
    assert is_hub_id("org/base", None)
    for name in (None, "", "a--b/c", "org/ba se", "org/base\n", "ørg/base", "a/b/c", "../x", "/x"):
        assert not is_hub_id(name, COMMIT)
    assert bare_name("/") == "model" and bare_name("org/base") == "org/base" and bare_name("a/b/c") == "c"


# --- the base card


def test_inherit_takes_licence_and_language_only():
    base_card = """\ufeff---
license: other
license_name: llama3.1
license_link: LICENSE
language: [en, no, pt-BR]
base_model: evil/other
tags: [evil]
model-index: [{name: x}]
datasets: [evil/data]
pipeline_tag: image-to-text
---
license: mit
"""
    assert inherit(base_card) == {
        "license": "other",
        "license_name": "llama3.1",
        "license_link": "LICENSE",
        "language": ["en", "no", "pt-BR"],
    }
    card = full(base_card=base_card)
    assert card.data.language == ["en", "no", "pt-BR"]
    assert card.data.license_link == "LICENSE"
    assert full(base_card=base_card, base_files=()).data.license_link == (
        f"https://huggingface.co/org/base/blob/{COMMIT}/LICENSE"
    )
    assert "Same licence as the base model: llama3.1." in body(card)
    assert "evil" not in str(card)
    check_card(card)


def test_relative_licence_link_of_a_local_base_is_left_out():
    card = full(
        config=config(base_model="base", base_revision=None),
        plan=plan(model=ModelRef("base", None, "llama", 12)),
        base_card="---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE.txt\n---\n",
        base_files=(),
    )
    assert "license_link" not in card.data.to_dict()


@pytest.mark.parametrize(
    "front, note",
    [
        ("license: [mit", "broken YAML"),
        ("a: !!python/object/apply:os.system [x]\nlicense: mit", None),
        ("license: !!int ''", "states no licence"),
        ("- a\n- b", "a list instead of keys and values"),
        ("[" * 600, "(nested too deeply|broken YAML)"),
        ("license: mit\nx: " + "a" * 300_000, "longer than"),
        ("license: null", "states no licence"),
        ("license: 'evil\n\n  ---\n\n  x: y'", "malformed 'license'"),
        ("license: {a: b}", "malformed 'license'"),
        ("license_name: 'a\u202eb'", "malformed 'license_name'"),
        ("license_name: " + "a" * 101, "malformed 'license_name'"),
        ("license_link: javascript:alert(1)", "malformed 'license_link'"),
        ("license_link: ../../secret", "malformed 'license_link'"),
        ("language: [[en]]", "malformed 'language'"),
        ("language: {{ x }}", "broken YAML"),
        ("language: [" + "en, " * 400 + "en]", "malformed 'language'"),
        ("&a a: &b [*a, *a]\nlicense: mit", None),
        ("x: \x07", "broken YAML"),
    ],
)
def test_broken_base_card_warns_and_never_crashes(front, note, caplog):
    base_card = f"---\n{front}\n---\n"
    inherited, notes = read_base_card(base_card)
    with caplog.at_level("WARNING"):
        card = full(base_card=base_card)
    if note is None:
        assert inherited == {"license": "mit"} and notes == ()
    else:
        assert inherited == {} and re.search(note, notes[0])
        assert re.search(note, caplog.text)
        assert not {"license", "license_name", "license_link", "language"} & card.data.to_dict().keys()
        assert "look the licence up there" in body(card)
    check_card(card)


def test_no_base_card_says_so():
    assert inherit(None) == {}
    assert "has no card to take the licence from" in body(full(base_card=None))


# --- the body


def test_results_table_puts_the_models_side_by_side():
    table = next(rows for rows in tables_of(body(full())) if rows[0][1:2] == ["original"])
    assert table[0] == ["", "original", "pruned", "healed"]
    rows = {row[0]: row[1:] for row in table[1:]}
    assert rows["Perplexity, The Time Machine ↓"] == ["33.12 ± 0.33", "60.34 ± 0.60", "40.45 ± 0.40"]
    assert rows["Bits per byte, The Time Machine ↓"] == ["1.2624 ± 0.0036", "1.4788 ± 0.0036", "1.3345 ± 0.0036"]
    assert rows["KL to the original (nats per token) ↓"] == ["–", "0.250 ± 0.010", "0.250 ± 0.010"]
    assert rows["Same most likely token as the original ↑"] == ["–", "81.0%", "81.0%"]
    assert rows["Decoder layers"] == ["12", "9", "9"]
    assert rows["Parameters"] == ["5,505,024", "4,200,000", "4,200,000"]
    assert rows["Weights"][0] == "11.01 MB (bfloat16)"
    assert rows["Peak memory of the process"] == ["400.00 MB"] * 3
    assert rows["Decode (tokens per second) ↑"] == ["50.5 (49.0–52.0)"] * 3
    assert rows["Prefill (tokens per second) ↑"] == ["1,000 (900–1,100)"] * 3
    text = body(full())
    assert "Measured on Example CPU, 2 threads (float32)." in text
    assert "Healing won back 66.7% of the loss" in text
    assert "windows of 512 tokens moved by 256, 50,000 predicted tokens, 200,000 bytes." in text


def test_what_was_not_measured_says_so():
    models = (model("original", speed=None), model("pruned", perplexity=(), fidelity=None, speed=None, completions=()))
    table = next(rows for rows in tables_of(body(full(healing=None, evaluation=evaluation(*models)))) if len(rows) > 5)
    rows = {row[0]: row[1:] for row in table[1:]}
    assert rows["Perplexity, The Time Machine ↓"] == ["33.12 ± 0.33", "not measured"]
    assert rows["KL to the original (nats per token) ↓"] == ["–", "not measured"]
    assert rows["Prefill (tokens per second) ↑"] == ["not measured", "not measured"]


def test_the_row_of_five_likeliest_tokens():
    fidelity = Fidelity(0.25, 0.01, 0.81, 50_000, top5_agreement=0.7)
    models = (model("original"), model("pruned", fidelity=fidelity), model("healed", fidelity=None))
    table = next(rows for rows in tables_of(body(full(evaluation=evaluation(*models)))) if len(rows) > 5)
    rows = {row[0]: row[1:] for row in table[1:]}
    assert rows["Five most likely tokens shared with the original ↑"] == ["–", "70.0%", "not measured"]


def test_a_collapsed_model_is_told_of_with_its_numbers():
    calm, stuck = Completion("Say:", "all sorts", tuple(range(12))), Completion("Say:", "the the", (7,) * 12)
    models = (model("original", completions=(calm,)), model("pruned", completions=(stuck,)))
    text = body(full(healing=None, evaluation=evaluation(*models)))
    told = "Free generation has collapsed: 88.9% of the 4-grams in the completions below are repeats, 0.0% in the"
    assert told in text
    table = next(rows for rows in tables_of(text) if rows[0][1:2] == ["original"])
    assert {row[0]: row[1:] for row in table}["Repeated 4-grams in completions ↓"] == ["0.0%", "88.9%"]
    fine = (model("original", completions=(calm,)), model("pruned", completions=(calm,)))
    assert "collapsed" not in body(full(healing=None, evaluation=evaluation(*fine)))


def test_layer_map_has_one_cell_a_layer():
    large = plan(model=ModelRef("org/base", COMMIT, "llama", 20), operations=(Operation("drop", (2, 17, 18)),))
    text = body(generate(config(), large))
    assert (
        "layer   0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15\n"
        "        █  █  ·  █  █  █  █  █  █  █  █  █  █  █  █  █\n"
        "layer  16 17 18 19\n"
        "        █  ·  ·  █\n"
    ) in text
    assert "Drop layers 2, 17–18 (3 of 20, counted from 0)." in text


def test_choice_reason_and_runner_up():
    text = body(full())
    assert "The input and the output of these layers are closest." in text
    assert "The distance across the removed layers is 0.1234." in text
    assert "The next best choice was layers 4–6, 0.0200 ± 0.0040 farther." in text
    assert "runner-up lies within two standard errors" not in text
    assert "two standard errors" in body(full(plan=plan(gap=0.007)))
    assert "next best" not in body(full(plan=plan(runner_up=None, gap=None, gap_standard_error=None, distance=None)))


def test_warnings_come_first():
    text = body(full())
    assert text.index("The learning rate was lowered once.") < text.index("## Quick start")
    assert "layers (" not in text.partition("## Quick start")[0]
    many = plan(operations=(Operation("drop", (3, 4, 5, 6)),))
    models = evaluation(model("original"), model("pruned", layers=8), model("healed", layers=8))
    warned = body(full(plan=many, evaluation=models)).partition("## Quick start")[0]
    assert "4 of 12 layers (33%) are gone." in warned
    few = full(scores=scores(data=text_use(samples=99)), evaluation=evaluation(*few_tokens()))
    assert "Only 99 samples decided" in body(few)
    assert "rest on 19,999 tokens only" in body(few)
    assert "[!WARNING]" not in body(full(healing=healing(warnings=())))


def few_tokens():
    return [model(label, perplexity=(perplexity(tokens=19_999),)) for label in ("original", "pruned", "healed")]


def test_healing_section():
    text = body(full())
    assert "QLoRA adapters (nf4 (double quantized)) on `gate_proj`, `up_proj`, `down_proj`" in text
    assert "123,456 trained parameters, 200 steps, 1,000,000 tokens, 2 min 5 s on Example CPU" in text
    assert "Merging the adapter lost 4.0% of what healing had gained." in text
    found = tables_of(text)
    assert [
        ["`rank`", "64"],
        ["`learning_rate`", "0.0003"],
        ["`target`", "mlp"],
        ["`seed`", "0"],
        ["`packed`", "yes"],
    ] == (next(rows for rows in found if rows[0][0] == "setting")[1:])
    stations = next(rows for rows in found if rows[0][0] == "station")
    assert stations[1:] == [
        ["original", "3.700"],
        ["pruned", "4.100"],
        ["pruned, quantized", "4.200"],
        ["healed: adapter on quantized weights", "3.900"],
        ["healed: adapter on unquantized weights", "3.850"],
        ["healed: adapter merged", "3.860"],
    ]
    plain = body(full(healing=healing(quantization=None, held_out=HeldOutLoss(4.1, None, None, 3.8, 3.8, None, 9))))
    assert "LoRA adapters (not quantized)" in plain and "QLoRA" not in plain and "pruned, quantized" not in plain
    gained = body(full(healing=healing(merge_loss_share=-0.01)))
    assert "Merging the adapter added 1.0% of what healing had gained." in gained


def test_bare_card_is_honest_about_what_is_missing():
    card = generate(config(), plan())
    text = body(card)
    assert "Not measured." in text
    assert "The model was not trained after the cut." in text
    assert "The saved weights were not loaded again" in text
    assert 'name = "path/to/this/folder"' in text
    check_card(card)


@pytest.mark.parametrize("card", [full(), generate(config(), plan()), full(healing=None)])
def test_nothing_missing_is_ever_printed(card):
    assert not re.search(r"\b(None|nan|NaN|inf|Undefined)\b", str(card))
    assert not re.search(r"\n\n\n", str(card))


def test_generations_side_by_side():
    text = body(full())
    found = [t.content for t in tokens(text) if t.type == "fence"]
    assert [f" went to sea ({label}).\n" in found for label in ("original", "pruned", "healed")] == [True] * 3
    assert found.count("The old man\n") == 1


def test_citation_and_paper():
    assert "@inproceedings{gromov2025unreasonable," in body(full())
    assert "](https://arxiv.org/abs/2403.17887)" in body(full())


@pytest.mark.parametrize("level", cards.RELOAD)
def test_reload_level_is_named(level):
    assert cards.RELOAD[level] in body(full(reload_level=level))


def test_how_the_base_was_fetched_is_named():
    whole, verified, ranges = (body(full(fetched=fetched)) for fetched in ("whole", "verified", "ranges"))
    at = f"The base was read at commit `{COMMIT}`."
    assert f"{at}\n" in whole and "weight file" not in whole and "fetched" not in whole
    assert f"{at} The sha256 of every weight file of the base was compared with the Hub's, and agrees.\n" in verified
    said = "For the cut only what stayed of its weights was fetched, by range, not hash-verified"
    assert f"{at} {said}" in ranges


def test_parts_of_a_base_are_not_compared_with_it():
    text = body(full(fetched="ranges", reload_level="streamed"))
    assert "Kept tensors were not compared with the base" in text and cards.RELOAD["streamed"] not in text
    assert cards.RELOAD["streamed"] in body(full(fetched="verified", reload_level="streamed"))
    assert cards.RELOAD["full"] in body(full(fetched="ranges"))


# --- strictness


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"output": "adapter"}, "output='adapter', but the healing record says 'merged'"),
        ({"healing": healing(output="adapter")}, "output='merged', but the healing record says 'adapter'"),
        ({"output": "gguf"}, "output='gguf'; expected 'merged' or 'adapter'"),
        ({"reload_level": "some"}, "reload_level='some'"),
        ({"fetched": "partly"}, "fetched='partly'; expected one of: whole, verified, ranges"),
        ({"fetched": "ranges", "plan": plan(model=ModelRef("org/base", None, "llama", 12))}, "fetched='ranges', but"),
        ({"repo_id": "a b/c"}, "repo_id='a b/c' is no Hub id"),
        ({"plan": plan(operations=())}, "removes no layer"),
        ({"plan": plan(operations=(Operation("drop", (12,)),))}, "speaks of layers [12]; the model has 12"),
        ({"plan": plan(method="nonsense")}, "unknown method 'nonsense'"),
        ({"scores": scores(layers=8)}, "a model with 8 layers, the plan of one with 12"),
        ({"evaluation": evaluation(model("pruned", layers=8))}, "pruned model has 8 layers; the plan says 9"),
        (
            {"evaluation": evaluation(model("original"), model("pruned", perplexity=(perplexity(stride=128),)))},
            "'The Time Machine' differs between the models original, pruned",
        ),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        full(**changes)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_figures_that_are_not_finite_are_refused(bad):
    for changes in (
        {"plan": plan(distance=bad)},
        {"plan": plan(gap=bad)},
        {"evaluation": evaluation(model("original"), model("pruned", fidelity=Fidelity(bad, 0.1, 0.5, 9)))},
        {"evaluation": evaluation(model("original", perplexity=(perplexity(perplexity=bad),)))},
        {"healing": healing(train_loss=bad)},
        {"healing": healing(settings={"learning_rate": bad})},
        {"scores": scores(seconds=bad)},
    ):
        with pytest.raises(MeasureError):
            full(**changes)


def test_template_refuses_missing_and_unformatted_values(monkeypatch):
    for value in (None, 1.5, True, [1]):
        with pytest.raises(ConfigError, match="the template prints"):
            markdown.printable(value)
    rendered = cards._template()
    with pytest.raises(ConfigError, match="the template uses 'card_data', which was not given"):
        rendered.render(title="only this")
    with pytest.raises(UndefinedError, match="'warnings' is undefined"):
        rendered.render(card_data="", title="", base="", plan=plan(), choice={"lead": ""}, healing={})
    monkeypatch.setattr(cards, "bullets", lambda *_, **__: None)
    monkeypatch.setattr(cards, "_licence", lambda *_: None)
    with pytest.raises(ConfigError, match="the template prints None"):
        full()


# --- the command


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, f"run org/base --revision {COMMIT} --method uidl --drop-layers 3"),
        (
            {"base_revision": None, "drop_layers": None, "layers": (7, 3, 8, 9)},
            "run org/base --method uidl --layers 3,7-9",
        ),
        ({"base_revision": None, "drop_layers": None, "sparsity": 0.25}, "run org/base --method uidl --sparsity 0.25"),
        (
            {"base_revision": None, "drop_layers": None, "sparsity": 0.5, "sparsity_of": "bytes", "method": "simple"},
            "run org/base --method simple --sparsity 0.5 --sparsity-of bytes",
        ),
        (
            {"base_revision": None, "protect_first": 2},
            "run org/base --config pruner_config.json --method uidl --drop-layers 3",
        ),
        (
            {"base_revision": None, "healing": HealingConfig(rank=8)},
            "run org/base --config pruner_config.json --method uidl --drop-layers 3",
        ),
        (
            {
                "base_revision": None,
                "calibration": CalibrationConfig("/home/x/data.txt"),
                "base_model": "/home/x/base",
            },
            "run base --config pruner_config.json --method uidl --drop-layers 3",
        ),
        ({"base_revision": None, "base_model": "--output"}, "run ./--output --method uidl --drop-layers 3"),
        (
            {"base_revision": None, "base_model": "a b; rm -rf $HOME"},
            "run 'a b; rm -rf $HOME' --method uidl --drop-layers 3",
        ),
        ({"base_revision": None, "hf_prune_version": "0.1.0"}, "run org/base --method uidl --drop-layers 3"),
    ],
)
def test_command_is_rebuilt_from_the_config(changes, expected):
    assert command(config(**changes)) == f"hf-prune {expected} --output pruned"


def test_command_heals_and_reads_the_recipe_from_the_repo():
    assert command(config(), heal=True).endswith("--drop-layers 3 --heal --output pruned")
    text = body(full(config=config(protect_last=1)))
    expected = "--config me/base-pruned --method uidl --drop-layers 3 --heal --heal-tokens 1000000 --output pruned"
    assert f"hf-prune run org/base --revision {COMMIT} {expected}\n" in text
    with pytest.raises(ConfigError, match="base_model is not set"):
        command(config(base_model=None))


# --- hostile text


def hostile_card(text):
    """A card with the same hostile text in every field that a stranger can fill."""
    use = text_use(dataset=text, config=text, split=text, revision=text, sha256=text)
    where = Environment(text, {text: text}, text, text)
    texts = (perplexity(name=text, data=use), perplexity(name="own", data=text_use(dataset=None)))
    models = [
        model(label, perplexity=texts, dtype=text, completions=(Completion(text, text),))
        for label in ("original", "pruned", "healed")
    ]
    return generate(
        config(base_model=text or None, base_revision=text or None),
        plan(model=ModelRef(text, text, text, 12), reason=text),
        scores=scores(data=use, environment=where),
        healing=healing(
            settings={text: text, "list": [text, None]},
            quantization=text,
            target_modules=(text,),
            data=use,
            held_out_data=use,
            environment=where,
            warnings=(text,),
        ),
        evaluation=Evaluation(tuple(models), where),
        base_card=f"---\nlicense_name: {json.dumps(text)}\nlicense: {json.dumps(text)}\nlanguage: {text}\n---\n{text}",
        base_files=(text,),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text):
    card = hostile_card(text)
    check_card(card)
    assert "49" not in body(card).replace("(49.0–", "")
    assert len(str(card)) < 200_000
    assert [t.content for t in tokens(body(card)) if t.type == "heading_open" or t.type == "heading_close"]
    headings = re.findall(r"^#+ (.*)$", without_fences(body(card)), re.MULTILINE)
    assert headings[1:] == EXPECTED_HEADINGS
    fences = [t for t in tokens(body(card)) if t.type == "fence"]
    assert [t.info for t in fences] == ["python", "text", *["text"] * 4, "bash", "bibtex"]
    words = shlex.split(fences[-2].content)
    assert words[:2] == ["hf-prune", "run"] and words[-2:] == ["--output", "pruned"]


EXPECTED_HEADINGS = [
    "Quick start",
    "What was removed",
    "Results",
    "What got worse",
    "What the models write",
    "Healing",
    "Make it again",
    "Reload check",
    "Limits",
    "Licence",
    "Time and hardware",
    "Citation",
]


def without_fences(text):
    lines = text.split("\n")
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "fence":
            lines[token.map[0] : token.map[1]] = [""] * (token.map[1] - token.map[0])
    return "\n".join(lines)


SPECIAL = st.text(
    alphabet=st.one_of(
        st.sampled_from("|`*_[](){}<>#!$\\~&;:'\"-+=.\n\r\t %@?/,1aZ"),
        st.sampled_from("\u202e\u200b\u2028\u0085\x00\ufeff\u05d0é"),
    ),
    max_size=40,
)
PIECES = st.lists(st.sampled_from([*(h for h in HOSTILE if len(h) < 200), "---\n", "</b>", "||", "\\|"]), max_size=4)


@settings(max_examples=40, deadline=None)
@given(SPECIAL | PIECES.map("".join))
def test_any_card_holds_its_shape(text):
    card = hostile_card(text)
    check_card(card)
    assert re.findall(r"^#+ (.*)$", without_fences(body(card)), re.MULTILINE)[1:] == EXPECTED_HEADINGS


@settings(max_examples=300, deadline=None)
@given(SPECIAL)
def test_escaped_text_renders_as_itself(text):
    inline = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse("x " + markdown.escape(text))
    assert [t.type for t in inline] == ["paragraph_open", "inline", "paragraph_close"]
    assert {t.type for t in inline[1].children} <= {"text", "text_special"}
    assert "".join(t.content for t in inline[1].children) == f"x {markdown.one_line(text, 1000)}".rstrip()
    alone = [t.type for t in MarkdownIt("commonmark").enable("table").parse(markdown.escape(text))]
    assert alone in ([], ["paragraph_open", "inline", "paragraph_close"])


@settings(max_examples=300, deadline=None)
@given(SPECIAL)
def test_code_fence_and_table_hold_their_text(text):
    line = markdown.one_line(text)
    children = MarkdownIt("commonmark").parse("x " + markdown.code(text))[1].children
    if line and "|" not in line:
        assert [t.type for t in children] == ["text", "code_inline"]
        assert children[1].content == line
    fenced = MarkdownIt("commonmark").parse(markdown.fence(text))
    assert [t.type for t in fenced] == ["fence"]
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert fenced[0].content == "".join(markdown.visible(x, keep="\t") + "\n" for x in expected.split("\n"))
    rows = tables_of(markdown.table([text, "b"], [[text, markdown.code(text)], ["c", text]]))
    assert [[len(row) for row in found] for found in rows] == [[2, 2, 2]]


@settings(max_examples=100, deadline=None)
@given(SPECIAL, SPECIAL)
def test_any_base_card_is_read_or_left(front, value):
    for base_card in (
        f"---\n{front}\n---\n",
        f"---\nlicense: {value}\nlicense_name: {json.dumps(value)}\n---\n",
        front,
    ):
        inherited, _ = read_base_card(base_card)
        assert inherited.keys() <= {"license", "license_name", "license_link", "language"}
        assert yaml.safe_load(yaml.safe_dump(inherited)) == inherited


def test_layers_of_the_command_are_read_back():
    words = command(config(drop_layers=None, layers=(0, 1, 2, 5, 9, 10))).split()
    runs = [part.split("-") for part in words[words.index("--layers") + 1].split(",")]
    assert [i for run in runs for i in range(int(run[0]), int(run[-1]) + 1)] == [0, 1, 2, 5, 9, 10]


def test_places_named_in_the_card_are_those_of_the_output_folder():
    for record in (Plan, Scores, Healing, Evaluation):
        assert f"`{RECORDS}/{record.FILE}`" in body(full())
    assert ADAPTER_FOLDER == ADAPTER


def test_command_survives_the_shell():
    for text in HOSTILE:
        if text:
            words = shlex.split(command(config(base_model=text, base_revision=text, protect_first=1)))
            assert words[:2] == ["hf-prune", "run"] and words[3] == "--revision" and len(words) == 13


# --- formats


def test_links_take_plain_urls_only():
    assert markdown.link("a_b", "https://huggingface.co/a_b") == r"[a\_b](https://huggingface.co/a_b)"
    for url in ("javascript:alert(1)", "https://x/) [y](z", "https://x y", "http://x", "https://x/\n"):
        with pytest.raises(ConfigError, match="cannot be linked"):
            markdown.link("x", url)


def test_ragged_tables_are_refused():
    with pytest.raises(ConfigError, match="has 1 cells; the header has 2"):
        markdown.table(["a", "b"], [["c"]])


def test_long_text_is_cut_and_says_so():
    assert markdown.fence("a" * 5000).endswith("\n… (1,000 more characters)\n```")
    assert markdown.one_line("a" * 500, 10) == "a" * 9 + "…"
    assert markdown.fence("می\u200cخواهم") == "```text\nمی\u200cخواهم\n```"


@pytest.mark.parametrize(
    "value, error, expected",
    [
        (33.1154, 0.3311, "33.12 ± 0.33"),
        (0.0, None, "0.000"),
        (0.0, 0.0, "0.000 ± 0.000"),
        (1234.5, 12.0, "1,234 ± 12"),
        (12345.6, None, "12,346"),
        (2.5e9, 1e7, "2.5e+09 ± 1e+07"),
        (0.00001, None, "1e-05"),
        (-0.25, 0.01, "-0.250 ± 0.010"),
    ],
)
def test_number(value, error, expected):
    assert number(value, error) == expected


def test_size_and_duration():
    assert [size(n) for n in (999, 1000, 11_010_048, 2_500_000_000)] == ["999 bytes", "1.00 kB", "11.01 MB", "2.50 GB"]
    assert [duration(s) for s in (3.14, 125, 7380)] == ["3.1 s", "2 min 5 s", "2 h 3 min"]


@pytest.mark.parametrize(
    "text",
    [
        "<!-- x",
        "<?x",
        "<script",
        "<!A",
        "<div",
        "</div",
        "<a href=x",
        "    code",
        "> quote",
        "- [ ] x",
        "***",
        "|a|\n|-|",
    ],
)
def test_no_block_starts_in_escaped_text(text):
    parsed = MarkdownIt("commonmark").enable("table").parse(markdown.escape(text))
    assert [t.type for t in parsed] == ["paragraph_open", "inline", "paragraph_close"]
    assert {t.type for t in parsed[1].children} <= {"text", "text_special"}
