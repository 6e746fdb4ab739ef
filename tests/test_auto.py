"""`method="auto"`: what it becomes, written out, for a machine, a family and the time there is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_prune.architecture import decoder_of
from hf_prune.architecture.writes import can_rescale
from hf_prune.auto import resolved
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.pruner import Pruner

from .evaluation.text import byte_tokenizer
from .tiny import tiny_model


def auto(**fields: Any) -> PrunerConfig:
    return PrunerConfig(method="auto", **{"drop_layers": 2, **fields})


@pytest.mark.parametrize(
    ("config", "gpu", "rescales", "method", "surgery"),
    [
        (auto(), False, True, "shortgpt-iterative", "compensate"),
        (auto(), False, False, "shortgpt-iterative", "drop"),
        (auto(), True, True, "greedy-kl", "compensate"),
        (auto(drop_layers=3), True, True, "shortgpt-iterative", "compensate"),  # more than a quarter of 8
        (auto(drop_layers=3, effort="hours"), False, True, "greedy-kl", "compensate"),
        (auto(effort="minutes"), True, True, "shortgpt-iterative", "compensate"),
        (auto(effort="instant"), True, True, "simple", "drop"),
        (auto(surgery="drop"), True, True, "greedy-kl", "drop"),
        (auto(drop_layers=None, sparsity=0.25), True, True, "greedy-kl", "compensate"),
        (
            auto(drop_layers=None, sparsity=0.5, sparsity_of="parameters"),
            True,
            True,
            "shortgpt-iterative",
            "compensate",
        ),
        (auto(drop_layers=None, layers=[3, 4]), True, False, "greedy-kl", "drop"),
    ],
)
def test_what_it_becomes(config: PrunerConfig, gpu: bool, rescales: bool, method: str, surgery: str) -> None:
    found = resolved(config, 8, gpu=gpu, rescales=rescales)
    recipe = found.recipe()
    assert (found.method, recipe.surgery, found.effort) == (method, surgery, None)
    assert (recipe.protect_first, recipe.protect_last) == ((0, 1) if method == "simple" else (2, 1))
    assert resolved(found, 8, gpu=not gpu, rescales=not rescales) == found  # nothing is left to decide


def test_what_the_user_says_stays() -> None:
    found = resolved(auto(protect_first=3, protect=(6,), max_forwards=5), 8, gpu=False, rescales=True)
    assert (found.protect_first, found.protect_last, found.protect, found.max_forwards) == (3, 1, (6,), 5)
    none = resolved(auto(protect_first=0, protect_last=0), 8, gpu=False, rescales=True).recipe()
    assert (none.protect_first, none.protect_last) == (0, 0)
    other = PrunerConfig(drop_layers=2)
    assert resolved(other, 8, gpu=True, rescales=True) is other


def test_effort_is_for_auto_alone() -> None:
    with pytest.raises(ConfigError, match="effort='hours' is for method 'auto', which it decides; got 'uidl'"):
        PrunerConfig(effort="hours")
    with pytest.raises(ConfigError, match="effort='days'; expected one of: 'instant', 'minutes', 'hours'"):
        PrunerConfig(method="auto", effort="days")  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "exact"), [("llama", True), ("gemma2", True), ("mixtral", True), ("opt", True)])
def test_where_rescaling_is_exact(family: str, exact: bool) -> None:
    assert can_rescale(decoder_of(tiny_model(family))) is exact


def test_rescaling_is_not_exact_without_a_last_norm() -> None:
    assert not can_rescale(decoder_of(tiny_model("opt", _remove_final_layer_norm=True)))


def test_records_name_what_was_done(tmp_path: Path) -> None:
    pruner = Pruner(tiny_model("llama"), byte_tokenizer(), auto(), run_folder=tmp_path / "run", progress=False)
    assert pruner.config.method == ("shortgpt-iterative" if not torch.cuda.is_available() else "greedy-kl")
    plan = pruner.plan()
    assert plan.method == pruner.config.method and plan.surgery == "compensate"
    assert not {0, 1, 7} & set(plan.dropped) and len(plan.dropped) == 2
