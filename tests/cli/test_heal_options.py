"""The options of healing: every setting has one, what a recipe says of another target goes, what cannot be is told."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hf_prune import PrunerConfig
from hf_prune.cli.configs import make_config
from hf_prune.cli.heal_options import HealOptions
from hf_prune.cli.options import CalibrationOptions, RecipeOptions
from hf_prune.config import HealingConfig
from hf_prune.healing import pipeline
from hf_prune.healing.budget import Throughput
from hf_prune.models import Models
from hf_prune.records import Healing

from .support import call, done, fast, planted, recipe, recipe_file

ELSEWHERE = {"dataset", "dataset_config", "split", "text_column", "seed"}
"""Settings that the options about text set."""

VALUES: dict[str, Any] = {
    "heal_method": "slicegpt", "heal_target": "all", "heal_loss": "next_token=1,kl=0.5", "heal_teacher": "nf4",
    "heal_temperature": 2.0, "heal_top_k": 9, "heal_prefix": "recompute", "heal_store_budget": "8GB",
    "heal_tokens": 11, "heal_steps": 12, "heal_batch_size": 6, "heal_micro_batch_size": 3, "heal_max_length": 13,
    "heal_packing": True, "heal_messages_column": "chat", "heal_self_distill": True, "heal_rank": 5,
    "heal_last_rank": 7, "heal_alpha": 8, "heal_dropout": 0.25, "heal_use_rslora": True, "heal_use_dora": True,
    "heal_last_blocks": 2, "heal_quantize": "none", "heal_optimizer": "adamw_8bit", "heal_learning_rate": 0.125,
    "heal_warmup_steps": 0, "heal_schedule": "linear", "heal_beta2": 0.5, "heal_recompute": False,
    "heal_held_out_samples": 4, "heal_eval_steps": 14, "heal_patience": 15, "heal_stop_on": "kl",
    "heal_save_steps": 16, "heal_report_to": "tensorboard, wandb", "heal_output": "adapter",
}  # fmt: skip


def of(base: PrunerConfig, tmp_path: Path, **options: Any) -> HealingConfig:
    """What options make of a recipe's healing."""
    file = str(base.save_pretrained(tmp_path))
    return make_config(RecipeOptions(config=file), CalibrationOptions(), HealOptions(**options)).healing


def test_every_setting_has_an_option() -> None:
    settings = {f.name for f in dataclasses.fields(HealingConfig)} - ELSEWHERE
    assert {f.name for f in dataclasses.fields(HealOptions)} == {f"heal_{name}" for name in settings} == set(VALUES)


def test_every_option_sets_its_own(tmp_path: Path) -> None:
    assert of(PrunerConfig(), tmp_path) == HealingConfig()
    wanted = {name.removeprefix("heal_"): value for name, value in VALUES.items()}
    wanted["report_to"] = ("tensorboard", "wandb")
    assert of(PrunerConfig(), tmp_path, **VALUES) == HealingConfig(**wanted)
    for name, value in VALUES.items():
        field = name.removeprefix("heal_")
        assert of(PrunerConfig(), tmp_path, **{name: value}) == HealingConfig(**{field: wanted[field]})


def test_switches_can_be_turned_off(tmp_path: Path) -> None:
    base = PrunerConfig(healing=HealingConfig(packing=True, use_dora=True))
    assert of(base, tmp_path, heal_packing=False) == HealingConfig(packing=False, use_dora=True)


OWN = HealingConfig(rank=2, learning_rate=0.01, batch_size=4, tokens=999, warmup_steps=1)


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({}, set()),
        ({"heal_method": "uidl"}, set()),  # that of the pruning method anyway
        ({"heal_target": "mlp"}, set()),
        ({"heal_target": "all"}, set()),  # adapters as before
        ({"heal_target": "q_proj"}, set()),
        ({"heal_target": "seam"}, {"rank", "learning_rate"}),
        ({"heal_method": "seam"}, {"rank", "learning_rate", "warmup_steps"}),
        ({"heal_method": "slicegpt", "heal_rank": 3}, {"learning_rate", "warmup_steps"}),
    ],
)
def test_what_a_recipe_says_of_other_weights_goes(tmp_path: Path, options: dict[str, Any], gone: set[str]) -> None:
    named = {name.removeprefix("heal_"): value for name, value in options.items()}
    kept = {f.name: getattr(OWN, f.name) for f in dataclasses.fields(OWN) if f.name not in gone}
    assert of(PrunerConfig(healing=OWN), tmp_path, **options) == HealingConfig(**kept | named)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base")


REFUSED = [
    (("--heal-method", "uidel"), "unknown healing recipe 'uidel'; expected one of: uidl, slicegpt, reassessing"),
    (("--heal-loss", "next_tokens"), "unknown healing loss 'next_tokens'; expected one of: "),
    (("--heal-loss", "kl=0"), "healing.loss='kl=0': 'kl=0'; expected a weight above 0"),
    (("--heal-target", "q_porj"), "q_porj"),
    (("--heal-target", "seam", "--heal-rank", "4"), "healing.rank=4 is of adapters, and target 'seam' trains weights"),
    (("--heal-target", "seam", "--heal-output", "adapter"), "healing.output='adapter', and target 'seam'"),
    (("--heal-target", "replaced"), "healing.target='replaced' trains the blocks that stand in for others"),
    (("--heal-target", "patch"), "healing.target='patch' trains maps of the stream, and there are none"),
    (("--heal-target", "full", "--heal-quantize", "nf4"), "target 'full' freezes nothing"),
    (("--heal-last-blocks", "2"), "healing.last_blocks=2 is of target 'last'; the target is 'mlp'"),
    (("--heal-temperature", "2"), "healing.temperature=2.0 is of losses that compare predictions"),
    (("--heal-top-k", "5"), "healing.top_k=5 is of losses that compare predictions"),
    (("--heal-store-budget", "much"), "healing.store_budget='much'; expected a size such as 8GB"),
    (("--heal-optimizer", "adamw_trch"), "healing.optimizer='adamw_trch'; expected one of: "),
    (("--heal-report-to", "tensorbord"), "'tensorbord'; expected any of: tensorboard, wandb, trackio. Did you mean"),
    (("--heal-rank", "4096"), "healing.rank=4096"),
    (("--method", "sleb", "--unit", "mlp", "--heal-target", "seam"), "no whole block goes"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_refused_before_any_work(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_prune.models.Models.fetch", never)
    monkeypatch.setattr("hf_prune.texts.Texts.calibration", never)
    plain = recipe(healing={"rank": None, "learning_rate": None})
    file = str(plain.save_pretrained(tmp_path / "recipe"))
    assert said in call("run", base, "--config", file, "--heal", *words, "--output", "out").failed()
    assert said in call("run", base, "--config", file, "--heal", *words, "--output", "out", "--dry-run").failed()
    assert not list(tmp_path.glob("out*/**/*.safetensors"))


@pytest.fixture
def pruned(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished folder, in the current one; blocks 3 and 4 of 8 are gone."""
    monkeypatch.chdir(tmp_path)
    fast(monkeypatch)
    file = recipe_file(tmp_path / "recipe", healing={"rank": None, "learning_rate": None})
    done("prune", base, "--config", file, "--layers", "3,4", "--output", "pruned")
    return tmp_path / "pruned"


def test_a_folder_whose_original_is_not_at_hand(pruned: Path) -> None:
    said = call("heal", pruned, "--heal-loss", "kl").failed()
    assert "healing.loss='kl' compares with the original, and the original is not at hand. Name it (--orig" in said
    assert "healing.stop_on='kl'" in call("heal", pruned, "--heal-stop-on", "kl").failed()


@pytest.mark.slow
def test_a_folder_is_healed_against_the_original(base: Path, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is healed is loaded by the training alone, not to learn where it would be.
    loaded: list[str] = []

    def noted(self: Models) -> Any:
        loaded.append(self.stage)
        return current(self)

    current = Models.current
    monkeypatch.setattr(Models, "current", noted)
    monkeypatch.setattr("hf_prune.healing.heal", counted(loaded, pipeline.heal))
    words = ("--heal-method", "auto", "--heal-steps", 2, "--heal-batch-size", 2)
    done("heal", pruned, "--original", base, *words, "--output", "healed")
    assert "pruned" not in loaded[: loaded.index("heal")]
    made = Healing.load(Path("healed/pruning"))
    assert (made.settings["method"], made.kind, made.settings["loss"]) == ("seam", "weights", "kl")
    assert {int(name.split(".")[2]) for name in made.target_modules} == {2, 3}
    assert PrunerConfig.from_pretrained("healed").healing.method == "seam"
    assert "healed already" in call("heal", "healed", "--original", base).failed()


def counted(noted: list[str], function: Any) -> Any:
    def call_it(*args: Any, **kwargs: Any) -> Any:
        noted.append("heal")
        return function(*args, **kwargs)

    return call_it


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--heal-rank", "3"), ["recipe 'uidl': LoRA on the MLPs (target mlp), rank 3, loss next_token; 480 tokens in "
                                "about 10 steps, about ", "no frozen prefix"]),
        (("--heal-target", "q_proj,v_proj", "--heal-rank", "3"), ["LoRA of rank 3 on q_proj,v_proj"]),
        (("--heal-method", "auto"), ["recipe 'seam': the two blocks at each gap (target seam), loss kl; the original "
                                     "in memory beside", "the first 2 of 6 blocks are frozen, 2 of them computed once "
                                     "for both models; stored where that pays: 128 bytes a token"]),
        (("--heal-method", "reassessing", "--heal-prefix", "store"),
         ["the last blocks, last norm and head (target last)", "the first 3 of 6 blocks are frozen, their "
          "states stored: 128 bytes a token, at most 0.00 GB"]),
        (("--heal-method", "seam", "--heal-teacher", "stored", "--heal-top-k", "5"),
         ["the original run once, what it says on disk", "stored of the original: 44 bytes a token"]),
    ],
)  # fmt: skip
def test_dry_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, told: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_prune.dry_healing.probe", lambda device, parameters: Throughput(1e12, "float32"))
    changes = {"rank": None, "learning_rate": None, "steps": 10}
    file = recipe_file(tmp_path / "recipe", healing=changes, layers=[3, 4])
    called = done("run", base, "--config", file, "--heal", *words, "--output", "out", "--dry-run", "--json")
    for part in told:
        assert part in called.json["steps"]["heal"]
    assert {path.name for path in tmp_path.iterdir()} == {"recipe"}


def test_dry_run_of_what_is_not_known_yet(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_prune.dry_healing.probe", lambda device, parameters: Throughput(1e12, "float32"))
    file = recipe_file(tmp_path / "recipe", healing={"rank": None, "learning_rate": None}, rounds=2)
    words = ("--config", file, "--heal", "--heal-method", "auto", "--output", "out", "--dry-run", "--json")
    heal = done("run", base, *words).json["steps"]["heal"]
    assert heal.startswith("recipe 'seam'") and heal.endswith("; so in each of 2 rounds") and "frozen" not in heal
