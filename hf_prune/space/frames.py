"""What travels from the models to the page while two models write: the same for page, API and MCP."""

from dataclasses import dataclass
from typing import Literal

from hf_prune.records import Speed

Stage = Literal["loading", "writing", "comparing", "timing", "done"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        top_p: the likeliest tokens that have this much probability together are drawn from; 1 for all.
        max_new_tokens: of each answer.
        seed: of the original's draws.
        same_seed: whether the pruned model draws with the same random numbers; with `seed + 1` otherwise.
        chat: whether the prompt goes through the chat template where the model has one.
    """

    temperature: float = 0.0
    top_p: float = 0.95
    max_new_tokens: int = 96
    seed: int = 0
    same_seed: bool = True
    chat: bool = True


@dataclass(frozen=True)
class Token:
    """One token of an answer, as both models see it after the same text.

    Attributes:
        text: what it adds to the answer; untrusted.
        kl: KL(original ‖ pruned) of the distributions that it was drawn from, in nats; None where it is not known.
        agrees: whether both models' likeliest token is the same here.
        other: the likeliest token of the model that did not write it; untrusted text.
    """

    text: str
    kl: float | None
    agrees: bool
    other: str


@dataclass(frozen=True)
class Parting:
    """Where two answers part.

    Attributes:
        original: tokens of the original's answer.
        pruned: tokens of the pruned model's answer.
        at: index of the first token in which they differ; None where both are the same.
    """

    original: tuple[Token, ...]
    pruned: tuple[Token, ...]
    at: int | None


@dataclass(frozen=True)
class Cost:
    """What one of the models takes; speed was measured while the other one rested.

    Attributes:
        layers: blocks.
        parameters: tied ones once.
        bytes: of the weights in memory.
        memory: most bytes while reading and writing: weights, cache and what comes and goes beside them.
        speed: prefill and decode; None where something else ran on this machine meanwhile.
    """

    layers: int
    parameters: int
    bytes: int
    memory: int | None
    speed: Speed | None


@dataclass(frozen=True)
class Frame:
    """How far a comparison is; each one holds all that the ones before it held.

    Attributes:
        stage: what is being done.
        status: the same in words, for people.
        original: the original's answer so far; untrusted text.
        pruned: the pruned model's.
        parting: where they part, once both have ended.
        original_cost: of the original, once it was measured.
        pruned_cost: of the pruned model.
        notes: what the visitor should know, such as that a prompt was cut short.
    """

    stage: Stage
    status: str
    original: str = ""
    pruned: str = ""
    parting: Parting | None = None
    original_cost: Cost | None = None
    pruned_cost: Cost | None = None
    notes: tuple[str, ...] = ()
