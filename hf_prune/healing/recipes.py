"""The named ways of healing: what papers trained, against what, how long, and at which rate."""

from dataclasses import dataclass, field
from typing import Literal

from hf_prune.errors import ConfigError
from hf_prune.registry import did_you_mean

AUTO = "auto"
"""The recipe that becomes another one by what is at hand; see `recipe_for`."""


@dataclass(frozen=True)
class ModelRecipe:
    """What a paper used for one model.

    Attributes:
        rank: LoRA rank, where adapters are trained.
        alpha: LoRA alpha, whatever the rank; None takes the rank.
        learning_rate: peak, for the recipe's own target.
        max_length: tokens per sequence.
    """

    rank: int = 64
    alpha: int | None = None
    learning_rate: float = 3e-4
    max_length: int = 2048


@dataclass(frozen=True)
class HealingRecipe:
    """One named way of healing.

    Attributes:
        title: one line for tables and help.
        paper: URL.
        steps: optimizer steps; where a paper counts in epochs, those that its dataset gave.
        batch_size: sequences per step.
        warmup_steps: linear warm-up of a full run.
        target: what is trained, as in `HealingConfig`.
        schedule: how the learning rate falls after the warm-up, to zero in every recipe.
        beta2: AdamW's second beta (the first is 0.9 in every recipe, as in torch).
        loss: what is brought down, as in `HealingConfig`.
        dropout: of adapters, where some are trained.
        models: lower-case Hub id to what the paper used for it.
        other: for every other model.
        note: what of it is ours, or not as in the paper; empty where nothing is.
    """

    title: str
    paper: str
    steps: int
    batch_size: int
    warmup_steps: int
    target: str
    schedule: Literal["cosine", "linear"]
    beta2: float
    loss: str = "next_token"
    dropout: float = 0.05
    models: dict[str, ModelRecipe] = field(default_factory=dict)
    other: ModelRecipe = ModelRecipe()
    note: str = ""

    def of(self, base_model: str) -> ModelRecipe:
        """The row of one model, upper or lower case alike."""
        return self.models.get(base_model.lower(), self.other)


RECIPES: dict[str, HealingRecipe] = {
    "uidl": HealingRecipe(
        title="LoRA on the MLPs, by the first paper's table",
        paper="https://arxiv.org/abs/2403.17887",
        steps=5000,
        batch_size=16,
        warmup_steps=100,
        target="mlp",
        schedule="cosine",
        beta2=0.999,
        models={
            "meta-llama/llama-2-7b-hf": ModelRecipe(rank=2),
            "meta-llama/llama-2-13b-hf": ModelRecipe(max_length=4096),
            "meta-llama/llama-2-70b-hf": ModelRecipe(rank=8, learning_rate=3e-5, max_length=4096),
            "qwen/qwen-7b": ModelRecipe(),
            "qwen/qwen-14b": ModelRecipe(max_length=4096),
            "mistralai/mistral-7b-v0.1": ModelRecipe(rank=4, learning_rate=3e-6),
            "microsoft/phi-2": ModelRecipe(learning_rate=2e-4),
        },
    ),
    # One pass over 8000 sequences, in batches of 3 of which 4 make a step: 8000 // 12 steps of 12, for every model.
    "slicegpt": HealingRecipe(
        title="LoRA on all linear maps, by SliceGPT",
        paper="https://arxiv.org/abs/2401.15024",
        steps=666,
        batch_size=12,
        warmup_steps=400,
        target="all",
        schedule="linear",
        beta2=0.95,
        other=ModelRecipe(rank=32, alpha=10, learning_rate=2e-4, max_length=1024),
        note="The paper's code also stops early on a validation loss; here that is asked for (patience).",
    ),
    # Two epochs of Alpaca-cleaned, 51,760 texts of which 2,000 are kept back: 2 * 49,760 // 64.
    "reassessing": HealingRecipe(
        title="The last 3 blocks, final norm and head",
        paper="https://arxiv.org/abs/2411.15558",
        steps=1555,
        batch_size=64,
        warmup_steps=100,
        target="last",
        schedule="linear",
        beta2=0.999,
        other=ModelRecipe(learning_rate=1e-5, max_length=256),
        note="The paper learns the answers of Alpaca alone; here the whole text, or answers with a messages column.",
    ),
    # The released 4.7B model: 0.06 billion tokens in batches of 128 sequences, warmed up for 1 % of the steps.
    "streamline": HealingRecipe(
        title="The block that stands for those that went",
        paper="https://arxiv.org/abs/2403.19135",
        steps=229,
        batch_size=128,
        warmup_steps=2,
        target="replaced",
        schedule="cosine",
        beta2=0.95,
        other=ModelRecipe(learning_rate=2e-4, max_length=2048),
        note="Of the paper's two losses the one that it finds better; its rate ends at 5e-5, ours at 0, and it decays "
        "weights by 1e-3, we by none.",
    ),
    "seam": HealingRecipe(
        title="The two blocks at each gap, against the original",
        paper="https://arxiv.org/abs/2510.23652",
        steps=5000,
        batch_size=16,
        warmup_steps=100,
        target="seam",
        schedule="cosine",
        beta2=0.999,
        loss="kl",
        other=ModelRecipe(learning_rate=1e-4),
        note="Of the paper are the blocks that are trained; the loss and all numbers are ours: the budget of 'uidl', "
        "the rate of Minitron, which learns from the original too.",
    ),
}

ADAPTER_RATE = 3e-4
"""Peak of the learning rate of adapters, in recipes that train something else."""

RATES: dict[str, float] = {"last": 1e-5, "seam": 1e-4, "replaced": 2e-4, "patch": 1e-4, "full": 1e-5}
"""Peak of the learning rate of weights that are trained themselves, in recipes that train something else: those of
Reassessing, of Minitron, of LLM-Streamline, of LinearPatch, and of Reassessing again."""

LOWEST_RATE = min(RATES.values())
"""Peak where weights are trained that no paper tells of."""

LAST_BLOCKS = 3
"""Blocks that target "last" trains where nothing else is said, as in Reassessing."""


def recipe_for(name: str, *, original: bool, seam: bool) -> str:
    """The recipe that a name stands for.

    "auto" is "seam" where whole blocks went and the original is at hand: at equal steps its predictions teach more
    than the text alone, two blocks at each seam do as well as more blocks elsewhere, and what lies below the first
    seam need be computed only once for both models. Otherwise it is "uidl".

    Args:
        name: "auto", or a recipe, which stands for itself.
        original: whether the original is at hand.
        seam: whether whole blocks went, so that there is a seam.

    Raises:
        ConfigError: there is no such recipe.
    """
    known = [*RECIPES, AUTO]
    if name not in known:
        raise ConfigError(
            f"unknown healing recipe '{name}'; expected one of: {', '.join(known)}.{did_you_mean(name, known)}"
        )
    if name != AUTO:
        return name
    return "seam" if original and seam else "uidl"
