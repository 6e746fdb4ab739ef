"""Chosen by what cuts do to the outputs."""

from hf_prune.method import WIKITEXT, Method

METHODS: tuple[Method, ...] = (
    Method(
        name="sleb",
        title="One block at a time, the one without which the loss is lowest",
        paper="https://arxiv.org/abs/2402.09025",
        measure="loss",
        planner="greedy",
        surgery="drop",
        healing="uidl",
        protect_first=1,
        protect_last=1,
        dataset=WIKITEXT,
        cost="about n L / 2 forwards",
    ),
)
