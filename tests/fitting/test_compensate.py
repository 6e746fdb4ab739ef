"""Dividing what later blocks write is the same as multiplying the stream at the seam."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune.architecture import decoder_of
from hf_prune.architecture.writes import check_scale_free, writes_of
from hf_prune.errors import ArchitectureError, ConfigError, MeasureError
from hf_prune.fitting.compensate import compensate
from hf_prune.fitting.seams import Magnitudes, factors, walk

from ..making import logits
from ..tiny import DEPTH, every_type, tiny_model, tokens
from .support import apart, cut, fitted, passed_by, silence, states, task_of, texts

GONE = (2, 3, 5)


def without_eps(model: PreTrainedModel) -> PreTrainedModel:
    """The norms' eps is what keeps scaling from being exact."""
    module: Any
    for module in model.modules():
        for name in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 1e-12)
    return model


def factors_of(model: PreTrainedModel, layers: tuple[int, ...]) -> tuple[float, ...]:
    task, seen = task_of(model, layers, texts()), Magnitudes()
    walk(task, [task.sequences], [seen])
    return factors(seen.result()["magnitudes"], task.windows(), "")


@pytest.mark.parametrize("model_type", every_type())
def test_the_same_as_a_factor_at_each_seam(model_type: str, tmp_path: Path) -> None:
    model, ids = without_eps(tiny_model(model_type)), tokens(3)
    one, two = factors_of(model, GONE)
    plan = fitted(model, GONE, "compensate", tmp_path, texts())
    assert plan.dropped == GONE and len(plan.fits) == 2 and f"{one:.4f} times" in plan.fits[0]
    with passed_by(model, GONE, {2: lambda h: h * one, 5: lambda h: h * two}):
        wanted = logits(model, ids)
    assert min(abs(one - 1), abs(two - 1)) > 0.03
    assert apart(logits(cut(model, plan), ids), wanted) < 1e-4
    with passed_by(model, GONE, {}):  # the test can fail
        assert apart(logits(model, ids), wanted) > 1e-3


@pytest.mark.parametrize("model_type", every_type())
def test_the_table_names_all_that_writes(model_type: str) -> None:
    """At -offset, the parameters write nothing: the stream leaves every block as it came."""
    decoder = decoder_of(tiny_model(model_type))
    for layer, block in enumerate(decoder.blocks):
        writes = writes_of(decoder, layer)
        for name in writes.all:
            block.get_parameter(name).data.fill_(-writes.offset)
    kept = states(decoder.model, tokens(2))
    assert all(torch.equal(kept[0], after) for after in kept)


def test_factors_are_ratios_of_mean_magnitudes_without_pads() -> None:
    model = tiny_model("llama")
    total, count = torch.zeros(DEPTH + 1, dtype=torch.float64), 0
    for ids in texts():
        rows = torch.stack(states(model, ids[None])).double().abs()
        total, count = total + rows.sum((1, 2, 3)), count + rows[0].numel()
    means = total / count
    assert factors_of(model, GONE) == pytest.approx([float(means[4] / means[2]), float(means[6] / means[5])], 1e-6)


def test_nothing_is_scaled_where_the_last_blocks_go(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plan = fitted(model, (6, 7), "compensate", tmp_path, texts())
    assert [operation.kind for operation in plan.operations] == ["drop"]
    assert "no block comes behind" in plan.fits[0]


def test_blocks_that_do_nothing_need_no_factor(tmp_path: Path) -> None:
    model = tiny_model("llama")
    silence(model, (3, 4))
    plan = fitted(model, (3, 4), "compensate", tmp_path, texts())
    assert torch.equal(logits(cut(model, plan), tokens()), logits(model, tokens()))


def test_the_embeddings_stay_and_so_may_be_tied(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    made = cut(model, fitted(model, GONE, "compensate", tmp_path, texts()))
    assert torch.equal(made.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert made.get_output_embeddings().weight is made.get_input_embeddings().weight


def test_the_base_is_left_alone(tmp_path: Path) -> None:
    model = tiny_model("gemma2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fitted(model, GONE, "compensate", tmp_path, texts())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("model_type", "setting"),
    [
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
        ("opt", {"_remove_final_layer_norm": True}),
    ],
)
def test_refused_where_the_magnitude_matters(model_type: str, setting: dict[str, Any]) -> None:
    model = tiny_model(model_type, **setting)
    with pytest.raises(ArchitectureError, match=f"{next(iter(setting))}', value True"):
        compensate(task_of(model, GONE, texts()))


def test_refused_for_an_architecture_that_is_not_known() -> None:
    model = tiny_model("helium")
    with pytest.raises(ArchitectureError, match="'helium': which of its weights write"):
        check_scale_free(decoder_of(model))


def test_refused_without_text() -> None:
    with pytest.raises(ConfigError, match="there is none"):
        compensate(task_of(tiny_model("llama"), GONE))


def test_refused_where_there_is_no_stream() -> None:
    model = tiny_model("llama")
    model.get_input_embeddings().weight.data.zero_()
    with pytest.raises(MeasureError, match="zero in front of block 0"):
        compensate(task_of(model, (0,), texts()))
