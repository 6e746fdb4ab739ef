"""What a reader of a card types: code that loads the model, and the command that makes it again."""

import dataclasses
import shlex
from typing import Literal

from hf_prune.card_metadata import bare_name
from hf_prune.config import PrunerConfig
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
        healed = ["hf-prune", "heal", output, "--output", f"{output}-healed"]
        budget = ["--heal-tokens", str(heal_tokens)] if heal_tokens else []
        lines = [words, *([[*healed, *budget]] if heal else [])]
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
