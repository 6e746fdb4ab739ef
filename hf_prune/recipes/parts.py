"""Attention or MLP goes, the block stays."""

from hf_prune.method import ALPACA, C4, Method

METHODS: tuple[Method, ...] = (
    Method(
        name="blockpruner",
        title="One attention or MLP at a time, the one without which the loss is lowest",
        paper="https://arxiv.org/abs/2406.10594",
        measure="loss",
        planner="greedy",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=ALPACA,
        unit="joint",
        cost="about n L forwards for n attentions and MLPs",
        note="The paper and its released code score by the perplexity of 256 samples of Alpaca; the loss is its "
        "logarithm, and orders the same. The released code takes modules out of the model; here they fall silent.",
    ),
    Method(
        name="evopress-parts",
        title="The attentions and MLPs whose lack makes outputs diverge least, by evolution",
        paper="https://arxiv.org/abs/2410.14649",
        measure="kl",
        planner="evolution",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=C4,
        unit="joint",
        cost="as evopress",
        note="The paper's search with attention and MLP as units of their own: of each kind go as many as there are "
        "of it in proportion, and swaps keep these numbers.",
    ),
)
