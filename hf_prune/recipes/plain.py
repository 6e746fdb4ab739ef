"""Chosen without measuring."""

from hf_prune.method import Method

_REASSESSING = "https://arxiv.org/abs/2411.15558"

METHODS: tuple[Method, ...] = (
    Method(
        name="tail",
        title="The deepest blocks, the last one among them, without measuring (heal afterwards)",
        paper=_REASSESSING,
        measure=None,
        planner="last",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=None,
        note="The paper's reverse order. It heals by training the head and the last three blocks in full, where this "
        "takes LoRA; without healing it loses far more than methods that measure.",
    ),
    Method(
        name="random",
        title="Blocks drawn at random: what a method that measures has to be better than",
        paper=_REASSESSING,
        measure=None,
        planner="random",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=None,
        note="A baseline. Another seed draws other blocks: judge it by several.",
    ),
)
