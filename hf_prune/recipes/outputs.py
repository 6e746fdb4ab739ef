"""Chosen by what cuts do to the outputs."""

from hf_prune.method import C4, WIKITEXT, Method

_SLEB = "https://arxiv.org/abs/2402.09025"
_EVOPRESS = "https://arxiv.org/abs/2410.14649"

METHODS: tuple[Method, ...] = (
    Method(
        name="sleb",
        title="One block at a time, the one without which the loss is lowest",
        paper=_SLEB,
        measure="loss",
        planner="greedy",
        surgery="drop",
        healing="uidl",
        protect_first=1,
        protect_last=1,
        dataset=WIKITEXT,
        cost="at most n (L + 1) / 2 forwards",
        note="The released code keeps the first and the last block, and so does this.",
    ),
    Method(
        name="shortened-llama-ppl",
        title="The blocks without each of which the loss is lowest",
        paper="https://arxiv.org/abs/2402.02834",
        measure="loss",
        planner="top_k",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=None,
        cost="at most (L + 3) / 2 forwards",
        note="The paper protects no block for this criterion; its released code keeps the first four and the last two "
        "unless told otherwise. It ranks by perplexity, whose logarithm is the loss, on 10 samples of 128 tokens of "
        "BookCorpus.",
    ),
    Method(
        name="kl-one-shot",
        title="The blocks without each of which the outputs diverge least from the whole model's",
        paper=_EVOPRESS,
        measure="kl",
        planner="top_k",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=C4,
        cost="at most (L + 3) / 2 forwards",
        note="EvoPress's fitness, each block scored once.",
    ),
    Method(
        name="greedy-kl",
        title="One block at a time, the one without which the outputs diverge least from the whole model's",
        paper=_SLEB,
        measure="kl",
        planner="greedy",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=C4,
        cost="at most n (L + 3) / 2 forwards",
        note="SLEB's search with EvoPress's fitness in place of the loss, and no block protected.",
    ),
    Method(
        name="exhaustive-kl",
        title="Of all sets of blocks the one without which the outputs diverge least from the whole model's",
        paper=_EVOPRESS,
        measure="kl",
        planner="exhaustive",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=C4,
        cost="up to (1 - n / L) L! / (n! (L - n)!) forwards, less what sets have in common",
        note="An oracle for small models and few layers; it counts its forwards and refuses before the first one "
        "where they are more than max_forwards.",
    ),
    Method(
        name="evopress",
        title="Evolution by swaps of blocks, towards the least divergence from the whole model's outputs",
        paper=_EVOPRESS,
        measure="kl",
        planner="evolution",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=None,
        cost="about 300 forwards for 50 generations of 32, whatever n and L; at most 6 (1 - n / L) + 1.3 each",
        note="The paper's text is 8 M tokens of FineWeb-Edu, of which its released code draws anew for each "
        "selection; here the stages look at the first 1/16 and 1/4 of the text, then at all of it. With few sequences "
        "these shares are larger, since no sequence is divided. The released code drops attentions and MLPs apart "
        "unless told otherwise (unit='joint').",
    ),
    Method(
        name="bypass-backprop",
        title="Probabilities of staying by policy gradient, towards the lowest loss",
        paper="https://arxiv.org/abs/2406.10576",
        measure="loss",
        planner="policy_gradient",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=C4,
        cost="about 800 (1 - n / L) forwards for 200 steps of 4 masks, less what masks have in common",
        note="The paper prunes heads and channels with 15 000 steps of 2 masks, each on fresh text, from "
        "probabilities that a metric gives; this drops blocks, begins with equal ones, and judges every mask on all "
        "of the text.",
    ),
)
