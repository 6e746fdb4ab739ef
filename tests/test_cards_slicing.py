import dataclasses
import json
import math
import re
import shlex

import pytest
import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from hf_prune.card_slicing import CITATIONS
from hf_prune.cards import RELOAD, command, generate
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.methods import METHODS, Method
from hf_prune.output import Finished, write_card
from hf_prune.records import Evaluation, ModelRef, Operation, Plan, Schedule, Slicing
from tests.test_cards import (
    COMMIT,
    ENVIRONMENT,
    HOSTILE,
    body,
    check_card,
    healing,
    model,
    scores,
    tables_of,
    text_use,
    tokens,
    without_fences,
)
from tests.test_cards import plan as drop_plan

SLICEGPT = "https://arxiv.org/abs/2401.15024"
DYNAMIC = "https://arxiv.org/abs/2411.03513"
WIDTHS = (168, 160, 152, 144, 144, 144, 136, 136, 128, 128, 136, 152)
REDUNDANCY = (0.0, 0.11, 0.21, 0.31, 0.36, 0.37, 0.51, 0.52, 0.93, 1.0, 0.53, 0.25)
BEFORE, NOW, SHORTCUTS = 5_505_024, 4_954_522, 331_953


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    """The slicing recipes as far as a card reads them."""
    for name, paper, measured in (("slicegpt", SLICEGPT, None), ("dynamic-slicing", DYNAMIC, "redundancy")):
        made = Method(name, f"What {name} does", paper, measured, "width", "slice", "slicegpt", 0, 0, None)
        monkeypatch.setitem(METHODS, name, made)


def slicing(widths=WIDTHS, **changes):
    """Dynamic, found by a search."""
    made = Slicing(
        hidden_size=192,
        embed=widths[0],
        attn_out=widths,
        mlp_out=(*widths[1:], 192),
        basis="per_block",
        tied=False,
        plain=False,
        requested=0.253,
        requested_of="width",
        original_parameters=BEFORE,
        parameters=NOW,
        shortcut_parameters=SHORTCUTS,
        base=0.05,
        redundancy=REDUNDANCY,
        search=(Schedule(0.253, (144,) * 12, 4.217, 0.031), Schedule(0.05, widths, 4.103, 0.029)),
        selection=text_use(dataset="org/selection", samples=23),
    )
    return dataclasses.replace(made, **changes)


def constant(**changes):
    return slicing(
        (144,) * 12, **{"base": None, "redundancy": None, "search": (), "selection": None, "requested": 0.25} | changes
    )


def plain(**changes):
    one_width = {"mlp_out": (144,) * 12, "basis": "global", "plain": True, "shortcut_parameters": 0}
    return constant(**one_width | changes)


def parallel(**changes):
    return constant(attn_out=(), **changes)


def plan(cut=None, **changes):
    cut = cut or slicing()
    made = Plan(
        model=ModelRef("org/base", COMMIT, "llama", 12),
        method="dynamic-slicing" if cut.redundancy else "slicegpt",
        planner="width",
        operations=(Operation("slice", tuple(range(12))),),
        reason="more redundant layers are narrower",
        slicing=cut,
    )
    return dataclasses.replace(made, **changes)


def config(**changes):
    given = {"method": "dynamic-slicing", "sparsity": 0.253, "base_model": "org/base", "base_revision": COMMIT}
    return PrunerConfig(**given | changes)


def layer_scores(**changes):
    given = {"measure": "redundancy", "distances": (), "standard_errors": (), "layers": (0.5,) * 12}
    return dataclasses.replace(scores(), **given | changes)


def evaluation(cut):
    sizes = {"original": cut.original_parameters, "pruned": cut.parameters, "healed": cut.parameters}
    return Evaluation(tuple(model(label, layers=12, parameters=n) for label, n in sizes.items()), ENVIRONMENT)


def full(cut=None, **changes):
    cut = cut or slicing()
    given = {
        "repo_id": "me/base-sliced",
        "scores": layer_scores() if cut.redundancy else None,
        "healing": healing(quantization=None, warnings=()),
        "evaluation": evaluation(cut),
        "base_card": "---\nlicense: apache-2.0\n---\n",
        "base_files": ("LICENSE",),
        "reload_level": "full",
        "pictures": True,
    } | changes
    return generate(given.pop("config", config()), given.pop("plan", plan(cut)), **given)


def section(card, heading):
    return body(card).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def facts(card):
    return {row[0]: row[1] for row in tables_of(section(card, "What was narrowed"))[0][1:]}


KINDS = {"dynamic": slicing, "constant": constant, "plain": plain, "parallel": parallel}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_card_in_shape(kind):
    for card in (full(KINDS[kind]()), generate(config(), plan(KINDS[kind]())), full(KINDS[kind](), healing=None)):
        check_card(card)
        assert not re.search(r"\b(None|nan|NaN|inf|Undefined|True of|False)\b", body(card))
        assert "\n\n\n" not in str(card)
        assert "What was removed" not in body(card) and "layer map" not in body(card)
        for block in re.findall(r"```python\n(.*?)```", body(card), re.DOTALL):
            compile(block, "card", "exec")


# --- the first words


def test_first_sentence():
    base = "[org/base](https://huggingface.co/org/base)"
    expected = f"{base} with the residual stream of its 12 layers narrowed from 192 to 144"
    assert f"{expected} on average, then healed with LoRA. Made with `hf-prune`.\n" in body(full())
    assert f"{expected}, then healed with LoRA. Made with `hf-prune`.\n" in body(full(constant()))
    assert f"{expected}. Made with `hf-prune`.\n" in body(full(constant(), healing=None))
    uneven = slicing((145, *WIDTHS[1:]), search=())
    assert "from 192 to 142.1 on average" in body(full(uneven))


def test_a_model_that_grew_says_so_first_and_in_the_table():
    grown = constant(parameters=5_945_426, original_parameters=5_505_024)
    card = full(grown)
    top = body(card).partition("## Quick start")[0]
    assert "The model GREW by 8.0%: 5,945,426 parameters instead of 5,505,024." in top
    assert "the shortcuts alone hold 331,953 and a head that shared the table" in top
    assert facts(card)["Parameters now"] == "5,945,426 (108.0% of those before; the model GREW by 8.0%)"
    tied = body(full(dataclasses.replace(grown, tied=True))).partition("## Quick start")[0]
    assert "what it cut: the shortcuts alone hold 331,953." in tied and "a head that" not in tied
    assert "GREW" not in body(full())
    check_card(card)


def test_more_than_thirty_percent_of_the_width_warns():
    narrow = constant(embed=132, attn_out=(132,) * 12, mlp_out=(*(132,) * 11, 192))
    top = body(full(narrow)).partition("## Quick start")[0]
    assert "The residual stream is 31.2% narrower on average." in top
    exact = constant(hidden_size=100, embed=70, attn_out=(70,) * 12, mlp_out=(*(70,) * 11, 100))
    assert "[!WARNING]" not in body(full(exact))


def test_few_samples_decided_widths_and_not_layers():
    top = body(full(scores=layer_scores(data=text_use(samples=99))))
    assert "Only 99 samples decided how wide each layer is." in top and "which layers go" not in top


# --- loading


def test_own_code_is_loaded_in_two_ways():
    quick = section(full(), "Quick start")
    shipped, package = re.findall(r"```python\n(.*?)```", quick, re.DOTALL)
    # The tokenizer reads the config as well, and would stop to ask.
    assert 'AutoModelForCausalLM.from_pretrained(name, dtype="auto", trust_remote_code=True)' in shipped
    assert "AutoTokenizer.from_pretrained(name, trust_remote_code=True)" in shipped
    assert "import hf_prune" not in shipped
    assert package.startswith("import hf_prune ") and "trust_remote_code" not in package
    assert "The model type is `sliced_llama`, which stock Transformers does not know." in quick
    assert "`pip install hf-prune`" in quick
    assert "stock `" not in quick and "no custom code" not in quick


def test_plain_models_are_stock_models():
    quick = section(full(plain()), "Quick start")
    assert "The weights are a stock `llama` checkpoint: no custom code, no patched library." in quick
    assert "trust_remote_code" not in quick and "import hf_prune" not in quick and "sliced_llama" not in quick


def test_adapter_lies_on_either_way_of_loading():
    card = full(healing=healing(output="adapter"), output="adapter")
    blocks = re.findall(r"```python\n(.*?)```", body(card), re.DOTALL)
    for block in blocks:
        lines = block.splitlines()
        assert lines.index("from peft import PeftModel") < 2
        loads = next(i for i, line in enumerate(lines) if line.startswith("model = AutoModel"))
        assert lines[loads + 1].startswith("model = PeftModel.from_pretrained(model, name")
    assert len(blocks) == 2 and "belongs on the pruned weights" in body(card)


@pytest.mark.parametrize("level", RELOAD)
def test_reload_check(level):
    own, stock = (
        section(full(reload_level=level), "Reload check"),
        section(full(plain(), reload_level=level), "Reload check"),
    )
    if level == "none":
        assert RELOAD["none"] in own and RELOAD["none"] in stock
        return
    for text in (own, stock):
        assert "Kept tensors were not compared byte for byte with the base." in text
    assert "`AutoModelForCausalLM` with `trust_remote_code=True`" in own and "trust_remote_code" not in stock
    assert ("in a process of its own" in own) == ("in a process of its own" in stock) == (level == "full")


# --- what was narrowed


def test_facts_come_from_the_records():
    assert facts(full()) == {
        "Asked to cut": "25.3% of the width",
        "Mean width kept": "144 of 192 (75.0%)",
        "Widths": "128–168",
        "Parameters before": "5,505,024",
        "Parameters now": "4,954,522 (90.0% of those before)",
        "Of these in shortcuts": "331,953 (6.7% of the parameters)",
        "Basis": "one rotation at each point, shortcuts between them",
        "Embeddings and head": "two tables (untied)",
        "Slice base (cut from every layer, before redundancy adds)": "5.0%",
        "Layer redundancy": "0.000 to 1.000",
    }
    assert facts(full(plain(tied=True, requested=0.17, requested_of="parameters"))) == {
        "Asked to cut": "17.0% of the parameters",
        "Mean width kept": "144 of 192 (75.0%)",
        "Widths": "144",
        "Parameters before": "5,505,024",
        "Parameters now": "4,954,522 (90.0% of those before)",
        "Of these in shortcuts": "none",
        "Basis": "one rotation for the whole model, no shortcuts",
        "Embeddings and head": "one table (tied)",
    }


def test_no_number_of_the_section_comes_from_elsewhere():
    cut = slicing()
    text = section(full(cut), "What was narrowed")
    records = json.dumps([dataclasses.asdict(cut), dataclasses.asdict(layer_scores())], default=str)
    derived = "12 144 75.0 90.0 6.7 25.3 5.0 0.000 1.000 2 0–1 12.5 4.217 0.031 4.103 0.029 0.5000 " + " ".join(
        [*map(str, range(12)), *(f"{r:.2f}" for r in REDUNDANCY)]
    )
    text = re.sub(r"\]\(https://[^)]*\)|`[0-9a-f]{16}…`|sha256", "", text)
    known = set(re.findall(r"\d+(?:\.\d+)?", records + " " + derived))
    assert set(re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))) <= known


def test_search_marks_the_chosen_schedule():
    card = full()
    text = section(card, "What was narrowed")
    assert tables_of(text)[1] == [
        ["slice base", "widths", "loss (nats per token) ↓", ""],
        ["25.3%", "144", "4.217 ± 0.031", ""],
        ["5.0%", "128–168", "4.103 ± 0.029", "chosen"],
    ]
    assert (
        "Chosen among 2 schedules by the loss on [org/selection](https://huggingface.co/datasets/org/selection)"
        in text
    )
    assert "23 samples of at most 512 tokens" in text
    searched = full(slicing((144,) * 12, search=slicing().search, base=0.253))
    rows = tables_of(section(searched, "What was narrowed"))[1]
    assert [row[-1] for row in rows] == ["", "chosen", ""]
    assert "Chosen among" not in body(full(slicing(search=(), selection=None)))


def test_width_list():
    assert (
        "```text\n"
        "layer         0    1    2    3    4    5    6    7    8    9   10   11\n"
        "width       168  160  152  144  144  144  136  136  128  128  136  152\n"
        "redundancy 0.00 0.11 0.21 0.31 0.36 0.37 0.51 0.52 0.93 1.00 0.53 0.25\n"
        "```\n"
    ) in body(full())
    assert "behind the last layer it is 192. Redundancy is the cosine" in body(full())
    text = body(full(constant()))
    assert "layer   0   1   2   3   4   5   6   7   8   9  10  11\nwidth 144" in text
    assert "edundancy" not in text and "after attention" not in text
    other = body(full(constant(attn_out=(136,) * 12)))
    assert "\nafter attention 136 136" in other and "\nwidth           144 144" in other
    long = constant(embed=144, attn_out=(), mlp_out=(*(144,) * 19, 192))
    rows = section(generate(config(), plan(long, model=ModelRef("org/base", COMMIT, "phi", 20))), "What was narrowed")
    assert "\n\nlayer  16  17  18  19\nwidth 144 144 144 144\n```" in rows


def test_pictures_are_embedded():
    text = body(full())
    assert (
        "![Width of the residual stream in each of 12 layers: 168, 160, 152, 144, 144, 144, 136, 136, 128, 128, 136, "
        "152, of 192 before slicing.](./widths.png)"
    ) in text
    assert re.findall(r"\(\./(.*)\)", text) == ["widths.png", "importance.png", "comparison.png"]
    assert ".png" not in body(full(pictures=False))


def test_method_and_measure_are_named():
    text = section(full(), "What was narrowed")
    assert (
        f"Method `dynamic-slicing`: [What dynamic-slicing does]({DYNAMIC}). More redundant layers are narrower."
        in text
    )
    assert "Measured in 12.5 s on [org/texts]" in text
    assert "Measured in" not in section(full(constant()), "What was narrowed")
    assert "the embeddings, the final norm and the head were not cut" not in text
    assert "and healing changed the weights further" in text
    assert "healing changed" not in section(full(healing=None), "What was narrowed")
    assert "rotated, cut and not trained" in body(full(healing=None))


# --- limits


def test_limits_of_each_kind():
    shared = "Attention heads, the intermediate size and the key-value cache are as large as the base's"
    limits = {kind: section(full(made()), "Limits") for kind, made in KINDS.items()}
    for text in limits.values():
        assert shared in text and "The norms divide by the original width of 192" in text
        assert "Narrowing layers loses" in text and "Removing" not in text and "Fewer layers" not in text
        assert text.count("The only speeds claimed here") + text.count("the only speeds claimed here") == 1
    assert (
        "The shortcuts cost two extra matrix products a layer, so that small batches may be slower"
        in limits["dynamic"]
    )
    assert "The shortcuts cost one extra matrix product a layer" in limits["parallel"]
    assert "shortcuts" not in limits["plain"]
    assert "by way of scaled weights and epsilons" in limits["plain"]
    assert "epsilons" not in limits["constant"]


# --- metadata


def test_metadata():
    found = full().data.to_dict()
    assert found["tags"] == ["hf-prune", "pruned", "slicing", "slicegpt", "custom_code", "dynamic-slicing", "llama"]
    assert (found["library_name"], found["base_model"], found["base_model_relation"]) == (
        "transformers",
        "org/base",
        "finetune",
    )
    assert full(constant()).data.tags == ["hf-prune", "pruned", "slicing", "slicegpt", "custom_code", "llama"]
    assert full(plain()).data.tags == ["hf-prune", "pruned", "slicing", "slicegpt", "llama"]
    adapter = full(healing=healing(output="adapter"), output="adapter").data.to_dict()
    assert (adapter["library_name"], adapter["base_model_relation"]) == ("peft", "adapter")
    for kind in KINDS.values():
        card = full(kind())
        assert yaml.safe_load(REGEX_YAML_BLOCK.search(str(card))[2]) == card.data.to_dict()


# --- command and citation


def test_command():
    assert command(config(base_revision=None)) == (
        "hf-prune run org/base --method dynamic-slicing --sparsity 0.253 --output pruned"
    )
    shares = config(base_revision=None, sparsity_of="parameters")
    assert "--sparsity 0.253 --sparsity-of parameters --output" in command(shares)
    unset = config(base_revision=None)
    object.__setattr__(unset, "sparsity_of", None)
    assert "--sparsity-of" not in command(unset) and "--config" not in command(unset)


def test_options_of_this_method_alone_are_read_from_the_recipe():
    chosen = config(base_revision=None, measure_kwargs={"skip_first": True})
    assert command(chosen) == (
        "hf-prune run org/base --config pruner_config.json --method dynamic-slicing --sparsity 0.253 --output pruned"
    )


def test_citations():
    text = section(full(), "Citation")
    assert [text.count(CITATIONS[url]) for url in (DYNAMIC, SLICEGPT)] == [1, 1]
    assert text.index(DYNAMIC) < text.index(SLICEGPT)
    text = section(full(constant()), "Citation")
    assert [text.count(CITATIONS[url]) for url in (DYNAMIC, SLICEGPT)] == [0, 1]


# --- strictness


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mlp_out": (144,) * 11}, "mlp_out has 11 entries; the model has 12 layers"),
        ({"attn_out": (144,)}, "attn_out has 1 entries"),
        ({"redundancy": (0.5,)}, "redundancy has 1 entries"),
        ({"search": (Schedule(0.1, (144,), 4.0, 0.1),)}, "search widths has 1 entries"),
        ({"embed": 193}, "width 193; expected 1 to 192"),
        ({"attn_out": (0,) * 12}, "width 0; expected 1 to 192"),
        ({"basis": "none"}, "basis is 'none'; expected one of: per_block, global"),
        ({"parameters": 0, "shortcut_parameters": 0}, "counts 0 parameters"),
        ({"original_parameters": 0}, "0 before slicing"),
        ({"shortcut_parameters": NOW + 1}, f"{NOW + 1} of them in shortcuts"),
        ({"selection": None}, "not the text that chose among them"),
        ({"search": slicing().search[:1]}, "those of no schedule that its search tried"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        generate(config(), plan(slicing(**changes)))


def test_records_that_do_not_belong_together_are_refused():
    both = (Operation("drop", (3,)), Operation("slice", tuple(range(12))))
    with pytest.raises(ConfigError, match="drops layers and slices those that stay"):
        full(plan=plan(operations=both))
    with pytest.raises(ConfigError, match="removes no layer and slices none"):
        full(plan=plan(slicing=None))
    fewer = Evaluation((model("pruned", layers=9, parameters=NOW),), ENVIRONMENT)
    with pytest.raises(ConfigError, match="pruned model has 9 layers; the plan says 12"):
        full(evaluation=fewer)
    for label, expected in (("original", BEFORE), ("pruned", NOW)):
        other = Evaluation((model(label, layers=12, parameters=1234),), ENVIRONMENT)
        with pytest.raises(ConfigError, match=f"{label} model has 1,234 parameters; the plan says {expected:,}"):
            full(evaluation=other)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_figures_that_are_not_finite_are_refused(bad):
    for changes in (
        {"requested": bad},
        {"base": bad},
        {"redundancy": (bad, *REDUNDANCY[1:])},
        {"search": (Schedule(0.05, WIDTHS, bad, 0.1),)},
        {"search": (Schedule(0.05, WIDTHS, 4.0, bad),)},
        {"search": (Schedule(bad, WIDTHS, 4.0, 0.1),)},
    ):
        with pytest.raises(MeasureError):
            generate(config(), plan(slicing(**changes)))


# --- hostile text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text):
    use = text_use(dataset=text, config=text, split=text, revision=text, sha256=text)
    cut = slicing(selection=use, requested_of=text)
    card = generate(
        config(base_model=text or None, base_revision=text or None),
        plan(cut, model=ModelRef(text, text, text, 12), reason=text),
        scores=layer_scores(data=use),
        healing=healing(warnings=(text,)),
        evaluation=evaluation(cut),
        base_files=(text,),
        pictures=True,
    )
    check_card(card)
    headings = re.findall(r"^#+ (.*)$", without_fences(body(card)), re.MULTILINE)
    assert headings[1:3] == ["Quick start", "What was narrowed"] and len(headings) == 13
    fences = [t for t in tokens(body(card)) if t.type == "fence"]
    assert [t.info for t in fences] == ["python", "python", "text", *["text"] * 4, "bash", "bibtex"]
    assert shlex.split(fences[-2].content)[:2] == ["hf-prune", "run"]


# --- beside the card


def finished(made, measured):
    return Finished(
        config=config(),
        plan=made,
        scores=measured,
        healing=None,
        evaluation=None,
        base_card=None,
        base_files=(),
        reload_level="none",
    )


@pytest.mark.parametrize(
    "made, measured, pictures",
    [
        (plan(), layer_scores(), ["importance.png", "widths.png"]),
        (plan(constant()), None, ["widths.png"]),
        (plan(), scores(), ["importance.png", "scores.png", "widths.png"]),
        (drop_plan(), scores(), ["importance.png", "layers.png", "scores.png"]),
        (drop_plan(), layer_scores(), ["importance.png", "layers.png"]),
        (drop_plan(), None, ["layers.png"]),
    ],
)
def test_pictures_beside_the_card(tmp_path, made, measured, pictures):
    path = write_card(tmp_path, finished(made, measured))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["README.md", *pictures])
    embedded = re.findall(r"!\[[^]]*\]\(\./([^)]*)\)", path.read_text(encoding="utf-8"))
    assert sorted(embedded) == pictures
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
