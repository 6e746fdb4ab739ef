"""What a reader of a card types: code that loads the model, and the command that makes it again."""

import dataclasses
import shlex
from typing import Any, Literal

from hf_prune.card_metadata import bare_name
from hf_prune.config import SAME, HealingConfig, PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.markdown import Markdown, fence, one_line
from hf_prune.records import ranges

ADAPTER_FOLDER = "adapter"
"""Where an unmerged adapter lies beside the pruned weights."""

PLAN = "pruning/plan.json"
"""Where a plan lies in a finished folder or repo."""

_FLAGGED = ("method", "drop_layers", "layers", "sparsity", "sparsity_of")
_RECORDED = ("base_model", "base_revision", "hf_prune_version")


def quick_start(
    repo_id: str | None, output: str, code: Literal["stock", "shipped", "package"] = "stock", kind: str = "sliced"
) -> Markdown:
    """Code that loads the model and writes a few words.

    Args:
        repo_id: a checked Hub id, or None for a folder.
        output: "merged" or "adapter".
        code: where the model's code comes from: Transformers, the repository itself, or this package.
        kind: of model that this package has code for: "sliced" or "patched".
    """
    # Without the consent here too, AutoTokenizer asks for it, as it reads the config.
    trust = ", trust_remote_code=True" if code == "shipped" else ""
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'name = "{repo_id}"' if repo_id else 'name = "path/to/this/folder"',
        f"tokenizer = AutoTokenizer.from_pretrained(name{trust})",
        f'model = AutoModelForCausalLM.from_pretrained(name, dtype="auto"{trust})',
        'inputs = tokenizer("Once upon a time", return_tensors="pt")',
        "tokens = model.generate(**inputs, max_new_tokens=40)",
        "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
    ]
    if output == "adapter":
        lines.insert(0, "from peft import PeftModel")
        lines.insert(6, f'model = PeftModel.from_pretrained(model, name, subfolder="{ADAPTER_FOLDER}")')
    if code == "package":
        lines.insert(0, f"import hf_prune  # makes {kind} models known to Transformers")
    return fence("\n".join(lines), "python")


def command(
    config: PrunerConfig,
    *,
    heal: bool = False,
    heal_tokens: int | None = None,
    recipe: str = PrunerConfig.CONFIG_NAME,
    output: str = "pruned",
) -> str:
    """The command that makes the model again, rebuilt from its config and quoted for a shell.

    Method and amount are flags, for the reader; where more than these was set, the whole recipe is read from `recipe`.
    A recipe without an amount is one that a plan was given to: the plan is named.

    Args:
        config: the recipe, with `base_model`; a path there shrinks to its last part.
        heal: whether the model was healed.
        heal_tokens: training tokens, where the config left the budget to the machine.
        recipe: repo or file that holds the config.
        output: folder to write.

    Raises:
        ConfigError: the config names no base model.
    """
    if not config.base_model:
        raise ConfigError(
            "base_model is not set in the config; expected the Hub id or name of the model that was pruned"
        )
    base = one_line(bare_name(config.base_model), 200) or "model"
    by_plan = config.layers is None and config.drop_layers is None and config.sparsity is None
    words = ["hf-prune", "prune" if by_plan else "run", f"./{base}" if base.startswith("-") else base]
    if config.base_revision:
        words += ["--revision", one_line(config.base_revision, 200)]
    if by_plan:
        words += ["--plan", PLAN, "--output", output]
        lines = [words]
        if heal:
            budget = {"tokens": heal_tokens} if heal_tokens else {}
            lines.append(["hf-prune", "heal", output, "--output", f"{output}-healed", *heal_words(config, budget)])
        return "\n".join(" ".join(map(shlex.quote, line)) for line in lines)
    default = PrunerConfig()
    # By field: a copy with the default method would be refused where options belong to this one.
    others = {field.name for field in dataclasses.fields(config)} - {*_FLAGGED, *_RECORDED}
    if any(getattr(config, name) != getattr(default, name) for name in others):
        words += ["--config", recipe]
    words += ["--method", config.method]
    if config.layers is not None:
        words += ["--layers", ranges(config.layers).replace("–", "-").replace(" ", "")]
    elif config.drop_layers is not None:
        words += ["--drop-layers", str(config.drop_layers)]
    elif config.sparsity is not None:
        words += ["--sparsity", str(config.sparsity)]
        if config.sparsity_of is not None and config.sparsity_of != default.sparsity_of:
            words += ["--sparsity-of", config.sparsity_of]
    if heal:
        words += ["--heal"] + (["--heal-tokens", str(heal_tokens)] if heal_tokens else [])
    return " ".join(map(shlex.quote, [*words, "--output", output]))


_TEXT = ("dataset", "dataset_config", "split", "text_column", "seed")
_BY_MACHINE = ("micro_batch_size", "recompute")
"""Settings that follow from the machine, and change nothing but rounding."""


def heal_words(config: PrunerConfig, changes: dict[str, Any]) -> list[str]:
    """The options of `heal` that make a healing again: what its recipe does not say by itself.

    Args:
        config: the recipe, its healing as it was asked for, or as it was resolved.
        changes: settings of healing that the config does not have.
    """
    healing = dataclasses.replace(config.healing, **changes)
    plain = _by_recipe(config, healing)
    source = config.calibration if healing.dataset == SAME else healing
    words = []
    for name in _TEXT:
        value = getattr(source, name)
        if value is not None and value != getattr(HealingConfig(), name):
            shown = bare_name(str(value)) if name == "dataset" else str(value)
            words += [f"--{name.replace('_', '-')}", one_line(shown, 200)]
    for field in dataclasses.fields(healing):
        value, name = getattr(healing, field.name), f"heal-{field.name.replace('_', '-')}"
        if field.name in _TEXT or value is None or value == getattr(plain, field.name):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", one_line(",".join(value) if isinstance(value, tuple) else str(value), 200)]
    return words


def _by_recipe(config: PrunerConfig, healing: HealingConfig) -> HealingConfig:
    """What comes of the recipe's name and the token budget alone; of a healing that was not resolved, the defaults."""
    from hf_prune.healing import RECIPES, resolve

    name, base = healing.method, str(config.base_model)
    if name not in RECIPES or healing.max_length is None:
        return HealingConfig()
    given = {key: getattr(healing, key) for key in ("target", "tokens", "batch_size", "max_length", "steps")}
    found = resolve(
        HealingConfig(**given), recipe=name, base_model=base, limit=healing.max_length, parameters=1, device="cpu"
    )
    return dataclasses.replace(
        found,
        method=config.recipe().healing,
        target=RECIPES[name].target,
        tokens=None,
        batch_size=RECIPES[name].batch_size,
        max_length=RECIPES[name].of(base).max_length,
        steps=RECIPES[name].steps,
        **{key: getattr(healing, key) for key in _BY_MACHINE},
    )
