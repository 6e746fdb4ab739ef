"""Parameters from widths alone: those that the models have, and those that the papers' code counts."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, OPTConfig, PhiConfig, Qwen2Config

from hf_prune.slicing.blank import blank_model
from hf_prune.slicing.costs import Costs, count
from hf_prune.slicing.export import export_plain
from hf_prune.slicing.modeling import PLAIN
from hf_prune.slicing.points import Widths
from hf_prune.slicing.read_costs import can_stay_tied, costs_of, costs_of_config, count_parameters
from hf_prune.slicing.widths import constant_widths, point_widths

from .support import CASES, TIED, WIDTH, base, full, points_of, sliced_by, widths_of

every_case = pytest.mark.parametrize("case", CASES)


def costs(case: str) -> Costs:
    decoder = base(case)
    return costs_of(decoder, can_tie=can_stay_tied(decoder))


@every_case
def test_count_is_what_the_model_has(case: str) -> None:
    decoder, found = base(case), costs(case)
    draw = random.Random(case)
    assert found.original == sum(p.numel() for p in decoder.model.parameters())
    assert found.can_tie == (case in TIED)
    assert found.parallel == (points_of(decoder) == 1 + decoder.num_layers)
    for tied in (False, True) if case in TIED else (False,):
        for shortcuts in (True, False):
            points = [draw.randint(1, WIDTH) for _ in range(points_of(decoder))]
            widths = widths_of(decoder, points if shortcuts else points[:1] * len(points))
            model = blank_model(decoder, widths, shortcuts=shortcuts, tied=tied)
            counted = count(found, widths, shortcuts=shortcuts, tied=tied)
            assert counted.total == count_parameters(model)
            named = dict(model.named_parameters())
            assert counted.shortcuts == sum(p.numel() for name, p in named.items() if "shortcut" in name)


@every_case
def test_a_config_is_enough(case: str) -> None:
    decoder = base(case)
    assert costs_of_config(decoder.config, case) == costs(case)
    assert all(not p.is_meta for p in decoder.model.parameters())


@pytest.mark.parametrize("case", [*PLAIN, "llama-biased", "llama-tied"])
def test_count_of_a_plain_model(case: str) -> None:
    decoder = base(case)
    widths = widths_of(decoder, [24] * points_of(decoder))
    plain = export_plain(sliced_by(decoder, widths, basis="global"))
    counted = count(costs(case), widths, shortcuts=False, tied=False, plain=True)
    assert counted.total == count_parameters(plain) and counted.shortcuts == 0


@given(st.data())
@settings(max_examples=25)
def test_any_widths_of_a_llama(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(["llama", "llama-tied", "llama-biased"]))
    decoder = base(case)
    points = data.draw(st.lists(st.integers(1, WIDTH), min_size=points_of(decoder), max_size=points_of(decoder)))
    tied = case in TIED and data.draw(st.booleans())
    widths = widths_of(decoder, points)
    model = blank_model(decoder, widths, shortcuts=True, tied=tied)
    assert count(costs(case), widths, shortcuts=True, tied=tied).total == count_parameters(model)


def test_a_filled_model_has_them_too() -> None:
    for case, tied in (("llama-tied", True), ("llama-tied", False), ("gpt2", False)):
        model = sliced_by(base(case), full(base(case)), tied=tied)
        assert count_parameters(model) == count(costs(case), full(base(case)), shortcuts=True, tied=tied).total


# ---- the shapes of real models

LLAMA_2 = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
)  # fmt: skip
LLAMA_3_2_1B = LlamaConfig(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
)  # fmt: skip
MISTRAL = MistralConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8,
)  # fmt: skip
QWEN_2_5 = Qwen2Config(
    vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip
PHI_2 = PhiConfig(
    vocab_size=51200, hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, num_attention_heads=32,
)  # fmt: skip
OPT_125M = OPTConfig(
    vocab_size=50272, hidden_size=768, ffn_dim=3072, num_hidden_layers=12, num_attention_heads=12,
    max_position_embeddings=2048, word_embed_proj_dim=768,
)  # fmt: skip
DENSE = {
    "Llama-2-7B": (LLAMA_2, 6_738_415_616),
    "Llama-3.2-1B": (LLAMA_3_2_1B, 1_235_814_400),
    "Mistral-7B": (MISTRAL, 7_241_732_096),
    "Qwen2.5-0.5B": (QWEN_2_5, 494_032_768),
    "phi-2": (PHI_2, 2_779_683_840),
    "OPT-125m": (OPT_125M, 125_239_296),
}


@pytest.fixture(scope="module")
def real() -> dict[str, Costs]:
    return {name: costs_of_config(config, name) for name, (config, _) in DENSE.items()}


def constant(found: Costs, sparsity: float) -> Widths:
    widths = constant_widths(found.hidden_size, len(found.layers), sparsity, multiple=8)
    return Widths(*point_widths(widths, found.hidden_size, parallel=found.parallel))


def test_dense_models_have_the_parameters_they_are_known_for(real: dict[str, Costs]) -> None:
    assert {name: found.original for name, found in real.items()} == {name: n for name, (_, n) in DENSE.items()}


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Llama-2-7B", {0.1: 6.940, 0.2: 6.106, 0.25: 5.705, 0.3: 5.293, 0.4: 4.501, 0.5: 3.730}),
        ("Mistral-7B", {0.1: 7.394, 0.2: 6.511, 0.25: 6.086, 0.3: 5.649, 0.4: 4.808, 0.5: 3.988}),
        ("Llama-3.2-1B", {0.1: 1.483, 0.2: 1.337, 0.25: 1.270, 0.3: 1.198, 0.4: 1.057, 0.5: 0.924}),
        ("Qwen2.5-0.5B", {0.1: 0.608, 0.2: 0.554, 0.25: 0.530, 0.3: 0.500, 0.4: 0.447, 0.5: 0.395}),
    ],
)
def test_closed_form_of_slicegpt(real: dict[str, Costs], name: str, billions: dict[float, float]) -> None:
    """N = V d + V D + sum over layers of d q + 2 d k + q d + 2 d I + I d' + d^2 + d d', and Qwen's biases."""
    found, config = real[name], DENSE[name][0]
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head = hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    biases = layers * (queries + 2 * keys) if name.startswith("Qwen") else 0
    for sparsity, expected in billions.items():
        d = constant(found, sparsity).embed
        total, between = config.vocab_size * (d + hidden) + biases, 0
        for layer in range(layers):
            behind = hidden if layer == layers - 1 else d
            total += d * queries + 2 * d * keys + queries * d + 2 * d * inner + inner * behind
            between += d * d + d * behind
        counted = count(found, constant(found, sparsity), shortcuts=True, tied=False)
        assert (counted.total, counted.shortcuts) == (total + between, between)
        assert counted.total / 1e9 == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("name", "parameters"), [("phi-2", 2_391_772_160), ("OPT-125m", 147_250_880)])
def test_figures_of_the_authors_own_tests(real: dict[str, Costs], name: str, parameters: int) -> None:
    assert count(real[name], constant(real[name], 0.2), shortcuts=True, tied=False).total == parameters


def test_one_table_saves_one_table(real: dict[str, Costs]) -> None:
    """Llama-3.2-1B at 25 %: a map of 1536 x 2048 in place of a second table of 128256 x 2048."""
    found, widths = real["Llama-3.2-1B"], constant(real["Llama-3.2-1B"], 0.25)
    untied, tied = (count(found, widths, shortcuts=True, tied=tied).total for tied in (False, True))
    assert untied - tied == 128256 * 2048 - 1536 * 2048
    assert tied / 1e9 == pytest.approx(1.01, abs=0.005)
