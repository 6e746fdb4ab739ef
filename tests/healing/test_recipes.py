import dataclasses
import re

import pytest

from hf_prune import serial
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.budget import Throughput
from hf_prune.healing.checkpoint import check_config
from hf_prune.healing.recipes import ADAPTER_RATE, RATES, RECIPES, recipe_for
from hf_prune.healing.registries import kind_of, trainable
from hf_prune.healing.settings import SETTINGS_FILE, named, resolve
from hf_prune.healing.step import parse_losses

GPU = {"recipe": "uidl", "limit": 32768, "parameters": 7_000_000_000, "device": "cuda"}
CPU = {"recipe": "uidl", "limit": 512, "parameters": 4_000_000, "device": "cpu", "base_model": "org/small"}
SLOW = Throughput(flops=1e10, dtype="float32")


def on_gpu(base_model, recipe="uidl", **changes):
    # Without a micro batch the GPU's memory would be asked for.
    return resolve(HealingConfig(micro_batch_size=1, **changes), base_model=base_model, **GPU | {"recipe": recipe})


@pytest.mark.parametrize(
    ("base_model", "rank", "learning_rate", "max_length", "tokens"),
    [
        ("meta-llama/Llama-2-7b-hf", 2, 3e-4, 2048, 163_840_000),
        ("meta-llama/Llama-2-13b-hf", 64, 3e-4, 4096, 327_680_000),
        ("meta-llama/Llama-2-70b-hf", 8, 3e-5, 4096, 327_680_000),
        ("Qwen/Qwen-7B", 64, 3e-4, 2048, 163_840_000),
        ("Qwen/Qwen-14B", 64, 3e-4, 4096, 327_680_000),
        ("mistralai/Mistral-7B-v0.1", 4, 3e-6, 2048, 163_840_000),
        ("microsoft/phi-2", 64, 2e-4, 2048, 163_840_000),
        ("somebody/else", 64, 3e-4, 2048, 163_840_000),
    ],
)
def test_the_paper_s_table(base_model, rank, learning_rate, max_length, tokens):
    for name in (base_model, base_model.upper(), base_model.lower()):
        config = on_gpu(name)
        assert (config.rank, config.alpha, config.learning_rate, config.max_length) == (
            rank, rank, learning_rate, max_length,
        )  # fmt: skip
        assert (config.batch_size, config.steps, config.warmup_steps, config.dropout) == (16, 5000, 100, 0.05)
        assert config.tokens == tokens
        assert config.target == "mlp"


EVERYWHERE = {
    **serial.to_dict(HealingConfig()), "micro_batch_size": 1, "recompute": True, "loss": "next_token",
}  # fmt: skip


def test_uidl_in_full():
    assert serial.to_dict(on_gpu("org/any")) == EVERYWHERE | {
        "method": "uidl", "rank": 64, "alpha": 64, "dropout": 0.05, "target": "mlp", "learning_rate": 3e-4,
        "warmup_steps": 100, "schedule": "cosine", "beta2": 0.999, "batch_size": 16, "steps": 5000,
        "tokens": 5000 * 16 * 2048, "max_length": 2048, "eval_steps": 500, "save_steps": 500,
    }  # fmt: skip


@pytest.mark.parametrize("base_model", ["org/any", "meta-llama/Llama-2-7b-hf"])
def test_slicegpt_in_full(base_model):
    assert serial.to_dict(on_gpu(base_model, recipe="slicegpt")) == EVERYWHERE | {
        "method": "slicegpt", "rank": 32, "alpha": 10, "dropout": 0.05, "target": "all", "learning_rate": 2e-4,
        "warmup_steps": 400, "schedule": "linear", "beta2": 0.95, "batch_size": 12, "steps": 8000 // 12,
        "tokens": 666 * 12 * 1024, "max_length": 1024, "eval_steps": 66, "save_steps": 66,
    }  # fmt: skip


def test_reassessing_in_full():
    assert serial.to_dict(on_gpu("org/any", recipe="reassessing")) == EVERYWHERE | {
        "method": "reassessing", "target": "last", "last_blocks": 3, "learning_rate": 1e-5, "warmup_steps": 100,
        "schedule": "linear", "beta2": 0.999, "batch_size": 64, "steps": 2 * (51_760 - 2_000) // 64,
        "tokens": 1555 * 64 * 256, "max_length": 256, "eval_steps": 155, "save_steps": 155,
    }  # fmt: skip


def test_streamline_in_full():
    assert serial.to_dict(on_gpu("org/any", recipe="streamline")) == EVERYWHERE | {
        "method": "streamline", "target": "replaced", "learning_rate": 2e-4, "warmup_steps": 2, "schedule": "cosine",
        "beta2": 0.95, "batch_size": 128, "steps": round(0.06e9 / (128 * 2048)), "tokens": 229 * 128 * 2048,
        "max_length": 2048, "eval_steps": 22, "save_steps": 22,
    }  # fmt: skip


def test_seam_in_full():
    assert serial.to_dict(on_gpu("org/any", recipe="seam")) == EVERYWHERE | {
        "method": "seam", "target": "seam", "loss": "kl", "teacher": "resident", "learning_rate": 1e-4,
        "warmup_steps": 100, "schedule": "cosine", "beta2": 0.999, "batch_size": 16, "steps": 5000,
        "tokens": 5000 * 16 * 2048, "max_length": 2048, "eval_steps": 500, "save_steps": 500,
    }  # fmt: skip


def test_alpha_of_slicegpt_is_the_recipe_s_at_any_rank():
    assert on_gpu("a/b", recipe="slicegpt", rank=8).alpha == 10
    assert on_gpu("a/b", recipe="slicegpt", rank=8, alpha=3).alpha == 3


LEFT_OPEN = {
    "dataset_config", "split", "messages_column", "last_blocks", "last_rank", "top_k", "teacher", "prefix",
    "store_budget", "patience",
}  # fmt: skip


def test_nothing_is_left_open():
    for recipe in RECIPES:
        for config in (
            on_gpu("a/b", recipe),
            resolve(HealingConfig(), **CPU | {"recipe": recipe}, throughput=SLOW),
        ):
            check_config(config)
            weights = kind_of(config.target) == "weights"
            allowed = LEFT_OPEN | ({"rank", "alpha", "dropout"} if weights else set())
            open_fields = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) is None}
            assert open_fields <= allowed
            assert not weights or open_fields >= {"rank", "alpha", "dropout"}


def test_what_is_left_open_is_refused_by_name():
    names = [f.name for f in dataclasses.fields(HealingConfig) if getattr(HealingConfig(), f.name) is None]
    resolvable = sorted(set(names) - LEFT_OPEN - {"method"})
    with pytest.raises(ConfigError) as refused:
        check_config(HealingConfig())
    assert sorted(re.findall(r"'(\w+)'", str(refused.value))) == resolvable
    for name in resolvable:
        with pytest.raises(ConfigError, match=rf"\['{name}'\] are None"):
            check_config(dataclasses.replace(on_gpu("a/b"), **{name: None}))


def test_weights_have_no_rank():
    config = dataclasses.replace(on_gpu("a/b"), target="full", rank=None, alpha=None, dropout=None)
    check_config(config)
    with pytest.raises(ConfigError, match="'rank', 'alpha', 'dropout'"):
        check_config(dataclasses.replace(config, target="q_proj"))


def test_what_the_user_set_stays():
    asked = HealingConfig(method="uidl", rank=3, alpha=7, learning_rate=0.5, warmup_steps=0, batch_size=6,
                          micro_batch_size=3, steps=11, tokens=4096, max_length=17, eval_steps=4, save_steps=5,
                          dropout=0.0, target="all", loss="next_token=2", schedule="linear", beta2=0.0,
                          recompute=False, prefix="recompute", last_rank=9, teacher="nf4", top_k=5)  # fmt: skip
    assert resolve(asked, base_model="mistralai/Mistral-7B-v0.1", **GPU) == asked
    other = dataclasses.replace(
        asked, method="slicegpt", target="mlp", schedule="cosine", dropout=0.5, beta2=0.5, recompute=True
    )
    assert resolve(other, base_model="a/b", **GPU | {"recipe": "slicegpt", "parameters": 7}) == other


@pytest.mark.parametrize(
    ("recipe", "target", "rate"),
    [
        ("uidl", "all", 3e-6),  # adapters take the row's rate wherever they are
        ("uidl", "q_proj,v_proj", 3e-6),
        ("uidl", "full", 1e-5),
        ("slicegpt", "last", 1e-5),
        ("slicegpt", "seam", 1e-4),
        ("seam", "seam", 1e-4),
        ("seam", "last", 1e-5),
        ("reassessing", "replaced", 2e-4),
        ("reassessing", "mlp", 3e-4),
        ("streamline", "all", 3e-4),
    ],
)
def test_a_learning_rate_belongs_to_what_is_trained(recipe, target, rate):
    config = on_gpu("mistralai/Mistral-7B-v0.1", recipe=recipe, target=target)
    assert config.learning_rate == rate
    assert (config.rank is None) == (kind_of(target) == "weights")
    assert on_gpu("mistralai/Mistral-7B-v0.1", recipe=recipe, target=target, learning_rate=0.1).learning_rate == 0.1


def test_every_target_of_weights_has_a_rate_and_none_is_an_adapter_s():
    weights = {entry.name for entry in trainable if kind_of(entry.name) == "weights"}
    assert weights == set(RATES)
    assert max(RATES.values()) < ADAPTER_RATE


def test_recipes_name_what_is_registered():
    for name, recipe in RECIPES.items():
        assert recipe.target in trainable
        assert parse_losses(named(HealingConfig(), name))


@pytest.mark.parametrize(
    ("original", "seam", "name"),
    [(True, True, "seam"), (True, False, "uidl"), (False, True, "uidl"), (False, False, "uidl")],
)
def test_auto_is_written_out(original, seam, name):
    assert recipe_for("auto", original=original, seam=seam) == name
    config = resolve(
        HealingConfig(method="auto", micro_batch_size=1), base_model="mistralai/Mistral-7B-v0.1",
        **GPU | {"recipe": "auto"}, original=original, seam=seam,
    )  # fmt: skip
    assert config == on_gpu("mistralai/Mistral-7B-v0.1", recipe=name)
    assert config.method == name


def test_a_teacher_is_there_where_a_loss_needs_one():
    assert on_gpu("a/b").teacher is None
    assert on_gpu("a/b", loss="next_token=1,kl=0.5").teacher == "resident"
    assert on_gpu("a/b", loss="kl", teacher="nf4").teacher == "nf4"
    stored = on_gpu("a/b", loss="kl", teacher="stored")
    assert (stored.teacher, stored.top_k) == ("stored", 64)
    assert on_gpu("a/b", loss="kl", teacher="stored", top_k=8).top_k == 8
    assert on_gpu("a/b", loss="kl").top_k is None


def test_large_models_compute_activations_again():
    small = GPU | {"parameters": 999_999_999}
    assert not resolve(HealingConfig(micro_batch_size=1), base_model="a/b", **small).recompute
    assert resolve(HealingConfig(micro_batch_size=1, recompute=True), base_model="a/b", **small).recompute


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[({"beta2": bad}, "beta2=.*from 0 and below 1") for bad in (-0.1, 1, True, float("nan"))],
        *[({"dropout": bad}, "dropout=.*from 0 and below 1") for bad in (-0.1, 1, True)],
        ({"schedule": "linaer"}, "HealingConfig.schedule='linaer'; expected one of: 'cosine', 'linear'.*'linear'"),
        ({"teacher": "asleep"}, "HealingConfig.teacher='asleep'; expected one of: 'resident', 'nf4', 'stored'"),
        ({"quantize": None}, "HealingConfig.quantize=None; expected one of: 'auto', 'nf4', 'none'"),
        ({"output": "both"}, "HealingConfig.output='both'; expected one of: 'merged', 'adapter'"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        HealingConfig(**changes)


def test_alpha_follows_a_rank_of_one_s_own():
    assert on_gpu("a/b", rank=16).alpha == 16


def test_length_is_clipped_to_the_model():
    assert resolve(HealingConfig(), **CPU, throughput=SLOW).max_length == 512
    assert resolve(HealingConfig(max_length=1000), **CPU, throughput=SLOW).max_length == 512
    assert resolve(HealingConfig(max_length=100), **CPU, throughput=SLOW).max_length == 100


def test_budget_of_a_cpu_is_a_power_of_two_that_fits_half_an_hour():
    config = resolve(HealingConfig(), **CPU, throughput=SLOW)
    rate = SLOW.tokens_per_second(CPU["parameters"])
    assert config.tokens & (config.tokens - 1) == 0
    assert config.tokens / rate <= 1800 < 2 * config.tokens / rate


def test_budget_is_at_most_the_recipe_s():
    fast = Throughput(flops=1e18, dtype="bfloat16")
    assert resolve(HealingConfig(steps=10), **CPU, throughput=fast).tokens == 10 * 16 * 512


def test_short_runs_warm_up_for_a_tenth():
    assert resolve(HealingConfig(tokens=50 * 16 * 512), **CPU).warmup_steps == 5
    assert resolve(HealingConfig(tokens=5 * 16 * 512), **CPU).warmup_steps == 0
    assert resolve(HealingConfig(tokens=999 * 16 * 512), **CPU).warmup_steps == 99
    assert resolve(HealingConfig(tokens=1000 * 16 * 512), **CPU).warmup_steps == 100


def test_a_recipe_of_few_steps_is_no_short_run():
    slicegpt = CPU | {"recipe": "slicegpt"}
    assert resolve(HealingConfig(tokens=666 * 12 * 512), **slicegpt).warmup_steps == 400
    assert resolve(HealingConfig(tokens=665 * 12 * 512), **slicegpt).warmup_steps == 66
    assert resolve(HealingConfig(tokens=9999 * 12 * 512, steps=5000), **slicegpt).warmup_steps == 400


def test_ten_checkpoints_in_a_run_and_measurements_that_take_a_tenth_of_it_at_most():
    for tokens, save_steps, eval_steps in ((50 * 16 * 512, 5, 7), (512, 1, 1)):
        config = resolve(HealingConfig(tokens=tokens), **CPU)
        assert (config.save_steps, config.eval_steps) == (save_steps, eval_steps)
    # A tenth of 409,600 trained tokens is 122,880 measured ones: 7 times 32 sequences of 512, 3 times by two models.
    asked = {"tokens": 50 * 16 * 512}
    assert resolve(HealingConfig(**asked, loss="kl"), **CPU).eval_steps == 50 // 3
    assert resolve(HealingConfig(**asked, loss="kl", teacher="stored"), **CPU).eval_steps == 7
    assert resolve(HealingConfig(**asked, held_out_samples=1000), **CPU).eval_steps == 50
    assert resolve(HealingConfig(**asked, held_out_samples=2), **CPU).eval_steps == 5


def test_micro_batches_fill_the_forward_and_divide_the_batch():
    assert resolve(HealingConfig(tokens=99999), **CPU).micro_batch_size == 8  # 8 x 512 = 4096
    assert resolve(HealingConfig(tokens=99999, batch_size=12), **CPU).micro_batch_size == 6
    assert resolve(HealingConfig(tokens=99999, max_length=64), **CPU).micro_batch_size == 16
    with pytest.raises(ConfigError, match="micro_batch_size=3 does not divide batch_size=16; expected one of: 1, 2,"):
        resolve(HealingConfig(tokens=99999, micro_batch_size=3), **CPU)


def test_unknown_recipe():
    known = "uidl, slicegpt, reassessing, streamline, seam, auto"
    with pytest.raises(ConfigError, match=f"unknown healing recipe 'uidi'; expected one of: {known}. Did.*'uidl'"):
        resolve(HealingConfig(), **{**CPU, "recipe": "uidi"})


def test_a_run_folder_remembers(tmp_path):
    first = resolve(HealingConfig(), **CPU, run_folder=tmp_path, throughput=SLOW)
    faster = Throughput(flops=1e12, dtype="float32")
    assert resolve(HealingConfig(), **CPU, run_folder=tmp_path, throughput=faster) == first
    other = resolve(HealingConfig(rank=2), **CPU, run_folder=tmp_path, throughput=faster)
    assert other.rank == 2
    assert other.tokens > first.tokens  # another question is answered anew
    assert (tmp_path / SETTINGS_FILE).is_file()
