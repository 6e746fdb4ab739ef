"""Adapters of every make: what they compute, what merging makes of them, what PEFT makes of what is saved."""

import copy
import random
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.architecture import decoder_of
from hf_prune.config import HealingConfig
from hf_prune.errors import ArchitectureError, CheckpointError, ConfigError
from hf_prune.healing.adapter import Adapters, save_adapter
from hf_prune.healing.checkpoint import quiet_peft
from hf_prune.healing.choice import check_target, choose
from hf_prune.healing.held_out import evaluation_mode
from hf_prune.healing.nf4 import nf4_config
from hf_prune.healing.origin import Origin
from hf_prune.healing.ranks import Ranks
from hf_prune.healing.targets import find_targets
from hf_prune.units import Unit
from tests.healing.support import ShortcutLlama, ShortcutLlamaConfig, pruned_checkpoint, settings
from tests.tiny import tiny_config, tiny_model, tokens

FAMILIES = ("llama", "gpt2", "gpt_neox", "opt", "qwen2_moe", "shortcut_llama")


def model_of(model_type: str, depth: int = 4) -> PreTrainedModel:
    if model_type != "shortcut_llama":
        return tiny_model(model_type, depth)
    config = ShortcutLlamaConfig(**tiny_config("llama", depth).to_dict())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ShortcutLlama(config).eval()


def origin_of(depth: int, silent: tuple[Unit, ...] = ()) -> Origin:
    return Origin(tuple(range(depth)), depth, silent=silent)


def chosen_in(model: PreTrainedModel, config: HealingConfig, silent: tuple[Unit, ...] = ()) -> Adapters:
    decoder = decoder_of(model, "org/tiny")
    chosen = choose(decoder, config, origin_of(decoder.num_layers, silent))
    assert isinstance(chosen, Adapters)
    return chosen


def random_state(
    chosen: Adapters, model: PreTrainedModel, config: HealingConfig, seed: int
) -> dict[str, torch.Tensor]:
    """As training might leave it: B far from zero, DoRA's lengths changed by up to a half."""
    generator = torch.Generator().manual_seed(seed)
    state = chosen.state(chosen.begin(copy.deepcopy(model), config))
    return {
        name: tensor * (0.5 + torch.rand(tensor.shape, generator=generator))
        if name.endswith("lora_magnitude_vector")
        else 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in state.items()
    }


def drawn(model: PreTrainedModel, seed: int) -> HealingConfig:
    """Settings at random."""
    draw = random.Random(seed)
    maps = [name for name in find_targets(decoder_of(model), "all").names if "shortcut" not in name]
    some = draw.sample(maps, draw.randint(1, len(maps)))
    rank = draw.randint(1, 4)
    return settings(
        target=draw.choice(["mlp", "all", ",".join(some), some[0].rpartition(".")[2]]),
        rank=rank,
        last_rank=draw.choice([None, rank + draw.randint(0, 10)]),
        alpha=draw.randint(1, 16),
        use_rslora=draw.random() < 0.5,
        use_dora=draw.random() < 0.6,
    )


def assert_near(found: torch.Tensor, expected: torch.Tensor, part: float = 1e-5) -> None:
    assert (found - expected).abs().max() <= part * expected.abs().max()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_attached_merged_and_saved_adapters_compute_the_same(model_type: str, seed: int, tmp_path: Path) -> None:
    model, ids = model_of(model_type), tokens()
    config = drawn(model, seed * 1000 + FAMILIES.index(model_type))
    chosen = chosen_in(model, config)
    state = random_state(chosen, model, config, seed)

    attached = chosen.attach(copy.deepcopy(model), config, state, "org/base")
    expected = attached(ids).logits
    assert (expected - model(ids).logits).abs().max() > 1e-4 * expected.abs().max()
    save_adapter(attached, state, tmp_path)
    with quiet_peft():
        loaded = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path)).eval()
    assert torch.equal(loaded(ids).logits, expected)

    merged = copy.deepcopy(model)
    chosen.merge(merged, config, state)
    assert_near(merged(ids).logits, expected)
    unloaded = attached.merge_and_unload(safe_merge=True).state_dict()
    for name, weight in merged.state_dict().items():
        assert_near(weight, unloaded[name], 1e-6)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_merging_computes_in_float32_and_casts_once(model_type: str, dora: bool) -> None:
    model = tiny_model(model_type, 2).to(torch.bfloat16)
    config = settings(rank=3, alpha=7, use_dora=dora, target="all")
    chosen = chosen_in(model, config)
    state, exact = random_state(chosen, model, config, 0), copy.deepcopy(model).float()
    chosen.merge(exact, config, state)
    chosen.merge(model, config, state)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, exact.state_dict()[name].to(torch.bfloat16)), name


def test_dora_starts_where_the_model_is_and_trains_lengths_too() -> None:
    model, ids = tiny_model("llama", 2), tokens()
    config = settings(use_dora=True, dropout=0.0)
    before = model(ids).logits
    trainee = chosen_in(model, config).begin(model, config)
    assert_near(trainee(ids).logits, before)
    trainee(input_ids=ids, labels=ids).loss.backward()
    trained = {name: p for name, p in trainee.named_parameters() if p.requires_grad}
    lengths = [p for name, p in trained.items() if "magnitude" in name]
    assert len(lengths) == 6 and len(trained) == 18
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.abs().max() > 0 for p in lengths)


@pytest.mark.parametrize("depth", [2, 5, 6])
def test_ranks_grow_evenly_and_count_alike(depth: int) -> None:
    model = tiny_model("llama", depth)
    config = settings(rank=3, last_rank=11, alpha=5)
    trainee = chosen_in(model, config).begin(model, config)
    found = {}
    for name, module in trainee.named_modules():
        if name.endswith("mlp.down_proj"):
            found[int(name.split(".")[4])] = module.r["default"]
            assert module.lora_A["default"].weight.shape == (module.r["default"], 48)
            assert module.scaling["default"] == pytest.approx(5 / 3)
    assert list(found) == list(range(depth))
    assert found[0] == 3 and found[depth - 1] == 11
    assert all(abs(rank - (3 + 8 * at / (depth - 1))) <= 0.5 for at, rank in found.items())


def test_rslora_scales_by_the_root_of_each_rank() -> None:
    config = settings(rank=4, last_rank=9, alpha=6, use_rslora=True)
    model = tiny_model("llama", 2)
    trainee = chosen_in(model, config).begin(model, config)
    scalings = {m.r["default"]: m.scaling["default"] for _, m in trainee.named_modules() if hasattr(m, "lora_A")}
    assert scalings == {4: pytest.approx(3.0), 9: pytest.approx(2.0)}
    assert {rank: Ranks.of(config).scaling(rank) for rank in scalings} == scalings


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("q_proj,v_proj", ("self_attn.q_proj", "self_attn.v_proj")),
        ("self_attn.q_proj", ("self_attn.q_proj",)),
        (" mlp.up_proj , q_proj,q_proj", ("mlp.up_proj", "self_attn.q_proj")),
        ("mlp", ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")),
    ],
)
def test_names_are_those_of_linear_maps(target: str, names: tuple[str, ...]) -> None:
    model = tiny_model("llama", 3)
    config = settings(target=target)
    chosen = chosen_in(model, config)
    assert chosen.names == names and chosen.lowest == 0 and chosen.kind == "adapters"
    state = chosen.state(chosen.begin(model, config))
    assert {key.split(".layers.")[1].partition(".lora")[0] for key in state} == {
        f"{at}.{name}" for at in range(3) for name in names
    }


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "q_prj",
            ["'q_prj' is no linear map", "Did you mean 'q_proj'", "one of all, full, last, mlp", "self_attn.o_proj"],
        ),
        ("mpl", ["Did you mean 'mlp'"]),
        ("q_proj,up_prj", ["'up_prj' is no", "Did you mean 'up_proj'", "Expected names with commas between of: mlp."]),
        ("proj", ["'proj' is no"]),
        ("q_proj,", ["'' is no"]),
        ("mlp,q_proj", ["'mlp' is no"]),
        ("layers.0.q_proj", ["'layers.0.q_proj' is no", "Did you mean 'q_proj'"]),
    ],
)
def test_a_name_that_matches_nothing_is_refused_without_weights(target: str, words: list[str]) -> None:
    with torch.device("meta"):
        blank = AutoModelForCausalLM.from_config(tiny_config("llama", 2))
    decoder, config = decoder_of(blank, "org/tiny"), settings(target=target)
    for refuses in (check_target, choose):
        with pytest.raises(ConfigError) as error:
            refuses(decoder, config, origin_of(2))
        assert all(word in str(error.value) for word in ["'org/tiny'", *words]), error.value


def test_names_of_maps_that_the_cut_will_bring_pass() -> None:
    decoder = decoder_of(tiny_model("llama", 2))
    check_target(decoder, settings(target="attn_shortcut"), origin_of(2), grows=True)
    with pytest.raises(ConfigError, match="'attn_shortcut' is no linear map"):
        check_target(decoder, settings(target="attn_shortcut"), origin_of(2))
    with pytest.raises(ConfigError, match="rank=33"):
        check_target(decoder, settings(rank=33), origin_of(2), grows=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 17, "target": "all"}, ["rank=17", "'model.layers.0.self_attn.k_proj'", "16 outputs and 32 inputs"]),
        ({"rank": 33}, ["'model.layers.0.mlp.gate_proj'", "48 outputs and 32 inputs", "at most 32"]),
        ({"rank": 8, "last_rank": 40}, ["last_rank=40", "layers.1.mlp", "of rank 40"]),
        ({"rank": 8, "last_rank": 7}, ["last_rank=7 is below rank=8"]),
        ({"target": "full", "use_dora": True}, ["use_dora=True is of adapters", "'full' trains weights"]),
        ({"target": "full", "use_rslora": True}, ["use_rslora=True"]),
        ({"target": "full", "last_rank": 9}, ["last_rank=9", "or names of linear maps"]),
    ],
)
def test_what_cannot_be_is_refused_without_weights(changes: dict[str, Any], words: list[str]) -> None:
    with torch.device("meta"):
        blank = AutoModelForCausalLM.from_config(tiny_config("llama", 2))
    for refuses in (check_target, choose):
        with pytest.raises(ConfigError) as error:
            refuses(decoder_of(blank), settings(**changes), origin_of(2))
        assert all(word in str(error.value) for word in words), error.value


def test_the_widest_rank_passes() -> None:
    assert chosen_in(tiny_model("llama", 2), settings(rank=16, target="all")).names
    assert chosen_in(tiny_model("gpt2", 2), settings(rank=32)).names


def test_growing_ranks_need_two_blocks() -> None:
    with pytest.raises(ConfigError, match="last_rank=8: block 0 alone carries adapters"):
        chosen_in(tiny_model("llama", 1), settings(last_rank=8))


def test_silent_parts_carry_none_and_shift_the_lowest_block() -> None:
    model = tiny_model("llama", 4)
    silent = (Unit(0, "mlp"), Unit(3, "mlp"))
    config = settings(rank=2, last_rank=6)
    chosen = chosen_in(model, config, silent)
    assert chosen.lowest == 1 and chosen.names == ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")
    state = chosen.state(chosen.begin(model, config))
    ranks = {
        key.split(".")[4]: len(tensor) for key, tensor in state.items() if key.endswith("down_proj.lora_A.weight")
    }
    assert ranks == {"1": 2, "2": 6}  # from the first block that carries adapters to the last one that does
    everything = chosen_in(tiny_model("llama", 4), settings(target="q_proj,up_proj"), silent)
    assert everything.lowest == 0 and everything.names == ("mlp.up_proj", "self_attn.q_proj")


def test_nothing_to_train_is_refused() -> None:
    silent = tuple(Unit(at, part) for at in range(2) for part in ("attention", "mlp"))  # type: ignore[arg-type]
    for target in ("all", "q_proj"):
        with pytest.raises(ArchitectureError, match="no linear map for target"):
            chosen_in(tiny_model("llama", 2), settings(target=target), silent)
    with pytest.raises(ConfigError, match=r"'up_proj' is no .*parts that were silenced carry none"):
        chosen_in(tiny_model("llama", 2), settings(target="up_proj"), (Unit(0, "mlp"), Unit(1, "mlp")))


def test_dora_refuses_rows_without_a_direction() -> None:
    model, config = tiny_model("llama", 2), settings(use_dora=True)
    state = random_state(chosen_in(model, config), model, config, 0)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5] = 0
    with pytest.raises(CheckpointError, match=r"a row of 'model\.layers\.1\.mlp\.up_proj' is all zeros"):
        chosen_in(model, config).begin(copy.deepcopy(model), config)
    state["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][5] = 0
    with pytest.raises(CheckpointError, match=r"a row of 'model\.layers\.1\.mlp\.up_proj' is all zeros"):
        chosen_in(model, config).merge(model, config, state)


def test_lengths_are_there_for_all_maps_or_for_none() -> None:
    model, config = tiny_model("llama", 2), settings(use_dora=True)
    chosen = chosen_in(model, config)
    state = random_state(chosen, model, config, 0)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"
    with pytest.raises(CheckpointError, match=r"lengths of 'model\.layers\.0\.mlp\.up_proj' have shape \(3,\)"):
        chosen.merge(model, config, state | {name: state[name][:3]})
    del state[name]
    with pytest.raises(CheckpointError, match=r"holds no 'model\.layers\.0\.mlp\.up_proj\.lora_magnitude_vector'"):
        chosen.merge(model, config, state)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_dora_with_growing_ranks_trains_on_four_bits(model_type: str, tmp_path: Path) -> None:
    """As on the weights that the four bits stand for, but for bitsandbytes' rounding to bfloat16 on one way."""
    folder = pruned_checkpoint(tmp_path / "pruned", model_type, initializer_range=0.1)
    quantization = nf4_config(folder, torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization, device_map={"": "cpu"})
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    replaced = 0
    for name, module in base.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            transposed = type(plain.get_submodule(name)).__name__ == "Conv1D"
            plain.get_submodule(name).weight.data = weight.T.contiguous() if transposed else weight
            replaced += 1
    config = settings(use_dora=True, use_rslora=True, rank=2, last_rank=5, target="all", dropout=0.0)
    chosen, ids = chosen_in(base, config), tokens(batch=4)
    assert replaced == 2 * len(chosen.names)

    start = random_state(chosen, base, config, 0)
    gradients, losses = [], []
    for model in (plain, base):
        trainee = chosen.begin(model, config)
        chosen.restore(trainee, start)
        evaluation_mode(trainee)
        loss = trainee(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: p.grad for name, p in trainee.named_parameters() if p.requires_grad})
    assert losses[0] == pytest.approx(losses[1], abs=0.01)
    assert gradients[0].keys() == gradients[1].keys() and any("magnitude" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() < 0.03 * gradient.norm(), name

    optimizer = torch.optim.SGD([p for p in trainee.parameters() if p.requires_grad], lr=0.5)
    for _ in range(8):
        optimizer.step()
        optimizer.zero_grad()
        trainee(input_ids=ids, labels=ids).loss.backward()
    state = chosen.state(trainee)
    shipped = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    merged = copy.deepcopy(shipped)
    chosen.merge(merged, config, state)
    with torch.no_grad():
        before = shipped(input_ids=ids, labels=ids).loss
        attached = chosen.attach(shipped, config, state, "org/base")(input_ids=ids, labels=ids)
        found = merged(input_ids=ids, labels=ids)
    assert_near(found.logits, attached.logits)
    assert found.loss < before - 0.2
