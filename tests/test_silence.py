"""Silenced parts: the model computes what a masked walk says, stays a stock one, and is the same file to file."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune.architecture import FAMILIES, decoder_of
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.head import Head
from hf_prune.judging import CutJudge
from hf_prune.records import ModelRef, Operation, Plan
from hf_prune.runner import Walker
from hf_prune.samples import Batch
from hf_prune.surgery import apply_plan
from hf_prune.surgery.silence import silence
from hf_prune.units import Part, Unit

from .making import base_folder, logits
from .test_streamed_surgery import LAYOUTS, assert_same
from .tiny import DEPTH, every_type, tiny_model, tokens

TYPES = [t for family in FAMILIES for t in family.model_types if t != "mamba"]
FAST = (*LAYOUTS, "bloom", "opt", "lfm2")
CUT = (Unit(0, "attention"), Unit(2, "mlp"), Unit(3, "attention"), Unit(3, "mlp"), Unit(7, "attention"))


def plan_of(model_type: str, *operations: Operation) -> Plan:
    model = ModelRef("org/model", None, model_type, DEPTH, "d" * 64)
    return Plan(model, "m", "p", operations, "why")


def silencing(model_type: str) -> Plan:
    """What a plan makes of `CUT`."""
    parts: tuple[Part, ...] = ("attention", "mlp")
    return plan_of(
        model_type,
        *(Operation("silence", tuple(u.layer for u in CUT if u.part == p), {"part": p}) for p in parts),
    )


def walked(model_type: str, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the whole model's cut branch."""
    decoder = decoder_of(tiny_model(model_type))
    walker, found = Walker(decoder), []
    walker.walk(
        [Batch(ids, torch.ones_like(ids))],
        cuts=[frozenset(CUT)],
        leave=lambda _i, _n, hidden, _m: found.append(hidden),
    )
    head = Head(decoder, walker.tuples)
    with torch.inference_mode():
        return torch.stack([head(row, one) for row, one in zip(found[0], ids, strict=True)])


@pytest.mark.parametrize("model_type", every_type(without=["mamba"]))
def test_it_computes_what_the_masked_walk_says(model_type: str) -> None:
    model = tiny_model(model_type)
    whole = logits(model, tokens())
    assert apply_plan(decoder_of(model), silencing(model_type)).num_layers == DEPTH
    found = logits(model, tokens())
    torch.testing.assert_close(found, walked(model_type, tokens()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, whole, atol=1e-2)


@pytest.mark.parametrize("model_type", ["llama", "gpt_oss", "bloom", "opt", "lfm2"])
def test_the_judge_scores_the_model_that_is_made(model_type: str) -> None:
    ids = tokens(3)
    judged = CutJudge(decoder_of(tiny_model(model_type)), list(ids), "loss").scores([frozenset(CUT)])[0]
    model = tiny_model(model_type)
    apply_plan(decoder_of(model), silencing(model_type))
    losses = torch.nn.functional.cross_entropy(logits(model, ids)[:, :-1].mT, ids[:, 1:])
    assert judged == pytest.approx(losses.item(), rel=1e-5)


@pytest.mark.parametrize(
    "model_type",
    [t if t in (*LAYOUTS, "bloom", "opt", "lfm2") else pytest.param(t, marks=pytest.mark.slow) for t in TYPES],
)
def test_saved_it_is_a_stock_model_the_same_file_to_file(model_type: str, tmp_path: Path) -> None:
    base_folder(tmp_path / "base", model_type)
    folder = assert_same(tmp_path / "base", silencing(model_type), tmp_path)
    model = tiny_model(model_type, vocab_size=AutoModelForCausalLM.from_pretrained(folder).config.vocab_size)
    apply_plan(decoder_of(model), silencing(model_type))
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded, tokens()), logits(model, tokens()))
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = loaded.generate(tokens(), use_cache=True, **settings)
    assert torch.equal(cached, loaded.generate(tokens(), use_cache=False, **settings))
    assert torch.equal(cached, model.generate(tokens(), use_cache=True, **settings))


def test_with_blocks_that_go_in_one_plan(tmp_path: Path) -> None:
    base_folder(tmp_path / "base", "qwen2")
    plan = plan_of(
        "qwen2", Operation("drop", (1, 4)), Operation("silence", (2, 7), {"part": "mlp"}), Operation("drop", (3,))
    )
    assert_same(tmp_path / "base", plan, tmp_path)


def test_only_what_writes_changes() -> None:
    before, after = tiny_model("llama"), tiny_model("llama")
    silence(decoder_of(after), (2, 5), part="mlp")
    changed = {n for (n, p), q in zip(before.named_parameters(), after.parameters(), strict=True) if not p.equal(q)}
    assert changed == {f"model.layers.{i}.mlp.down_proj.weight" for i in (2, 5)}
    assert not any(after.get_parameter(name).any() for name in changed)


def test_refusals_leave_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    before = logits(model, tokens())
    decoder = decoder_of(model)
    with pytest.raises(ConfigError, match="part='block'; expected 'attention' or 'mlp'"):
        silence(decoder, (1,), part="block")
    with pytest.raises(ArchitectureError, match="block 0 of .*mamba.*has no attention that could go alone"):
        silence(decoder_of(tiny_model("mamba")), (0,), part="attention")
    decoder.blocks[5].mlp.down_proj.weight = decoder.blocks[1].mlp.down_proj.weight
    with pytest.raises(ArchitectureError, match="shares 'mlp.down_proj.weight' with another place"):
        silence(decoder, (2, 5), part="mlp")
    decoder.blocks[5].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), False)
    with pytest.raises(ArchitectureError, match="block 5 .*quantized"):
        silence(decoder, (2, 5), part="mlp")
    decoder.blocks[5].mlp.down_proj.weight = tiny_model("llama").model.layers[5].mlp.down_proj.weight
    assert torch.equal(logits(model, tokens()), before)
