"""A shipped adapter is held against the settings in the record, whatever make it is of."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune import serial
from hf_prune.architecture import decoder_of
from hf_prune.healing.adapter import CONFIG, WEIGHTS, save_adapter
from hf_prune.healing.choice import choose
from hf_prune.healing.origin import Origin
from hf_prune.output import ADAPTER
from hf_prune.records import Healing
from hf_prune.units import Unit
from hf_prune.verify_checks import Check
from hf_prune.verify_healing import check_healing
from tests.healing.support import settings
from tests.test_cards_healing import healed
from tests.tiny import tiny_config, tiny_model

ORIGIN = Origin(kept=(0, 1, 4, 5), depth=6, silent=(Unit(1, "mlp"),))
EVERYTHING = {"target": "q_proj,mlp.up_proj", "rank": 3, "last_rank": 9, "use_rslora": True, "use_dora": True}


def shipped(folder: Path, model_type: str = "llama", **changes: Any) -> Healing:
    """Save a fresh adapter, and the record that belongs to it."""
    model, config = tiny_model(model_type, 4), settings(output="adapter", **changes)
    chosen = choose(decoder_of(model), config, ORIGIN)
    adapted = chosen.begin(model, config)
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    save_adapter(adapted, chosen.state(adapted), folder / ADAPTER)
    return healed(
        settings=serial.to_dict(config), target_modules=chosen.names, trained_parameters=count, output="adapter"
    )


def check(folder: Path, record: Healing, model_type: str = "llama") -> Check:
    with torch.device("meta"):
        meta: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(model_type, 4))
    return check_healing(folder, meta, record, ORIGIN)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True, "target": "all"},
        {"last_rank": 10, "alpha": 6},
        {"last_rank": 10, "use_rslora": True, "use_dora": True, "target": "all"},
    ],
    ids=["plain", "rslora", "dora", "ranks", "everything"],
)
def test_what_was_made_passes(changes: dict[str, Any], model_type: str, tmp_path: Path) -> None:
    found = check(tmp_path, shipped(tmp_path, model_type, **changes), model_type)
    assert found.status == "pass", found.reason


def test_records_and_adapters_from_before_there_were_more_makes_pass(tmp_path: Path) -> None:
    record = shipped(tmp_path)
    new = ("last_rank", "use_rslora", "use_dora")
    old = {key: value for key, value in record.settings.items() if key not in new}
    path = tmp_path / ADAPTER / CONFIG
    config = {k: v for k, v in json.loads(path.read_text()).items() if "pattern" not in k and k not in new}
    path.write_text(json.dumps(config))
    assert check(tmp_path, dataclasses.replace(record, settings=old)).status == "pass"


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": False},
        {"use_rslora": False},
        {"rank_pattern": {}},
        {"rank_pattern": {r"model\.layers\.3\..*": 9}},
        {"rank_pattern": {".*": 3}},
        {"alpha_pattern": {r"model\.layers\.3\..*": 400}},
        {"r": 4},
        {"lora_alpha": 5},
        {"lora_bias": True},
        {"layer_replication": [[0, 2], [1, 4]]},
        {"arrow_config": {"top_k": 2}},
    ],
    ids=str,
)
def test_a_config_that_says_something_else_fails(changes: dict[str, Any], tmp_path: Path) -> None:
    record = shipped(tmp_path, **EVERYTHING)
    path = tmp_path / ADAPTER / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    found = check(tmp_path, record)
    assert found.status == "fail" and next(iter(changes)) in str(found.reason)


@pytest.mark.parametrize(
    "changes", [{"use_dora": False}, {"use_rslora": False}, {"last_rank": 8}, {"last_rank": None}]
)
def test_a_record_that_says_something_else_fails(changes: dict[str, Any], tmp_path: Path) -> None:
    record = shipped(tmp_path, **EVERYTHING)
    assert check(tmp_path, record).status == "pass"
    assert check(tmp_path, dataclasses.replace(record, settings=record.settings | changes)).status == "fail"


@pytest.mark.parametrize("changes", ["without lengths", "other ranks", "one more"])
def test_tensors_of_another_make_fail(changes: str, tmp_path: Path) -> None:
    record = shipped(tmp_path, **EVERYTHING)
    path = tmp_path / ADAPTER / WEIGHTS
    state = load_file(path)
    if changes == "without lengths":
        state = {name: tensor for name, tensor in state.items() if "magnitude" not in name}
    elif changes == "other ranks":
        state = {name: tensor[:3] if ".lora_A." in name else tensor for name, tensor in state.items()}
    else:
        silenced = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
        assert silenced not in state
        state[silenced] = copy.deepcopy(state[silenced.replace("layers.1", "layers.0")])
    save_file(state, path)
    found = check(tmp_path, record)
    assert found.status == "fail" and "tensors of the adapter are not those of the record" in str(found.reason)
