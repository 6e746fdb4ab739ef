"""What this package takes where nobody says what to take; see `hf_prune.auto`."""

from hf_prune.method import Method

METHODS: tuple[Method, ...] = (
    Method(
        name="auto",
        title="What published results at scale speak for, in the time and with the text that there is",
        paper="https://arxiv.org/abs/2604.24938",
        measure="block_influence",
        planner="greedy",
        surgery="drop",
        healing="uidl",
        protect_first=2,
        protect_last=1,
        dataset=None,
        cost="by effort: instant none, minutes up to n forwards, hours at most n (L + 3) / 2 forwards",
        note=(
            "Becomes a method of its own name, which is what plan, recipe and card tell. effort='instant' reads no "
            "text and takes 'simple'; 'minutes' takes 'shortgpt-iterative', 'hours' 'greedy-kl', both with the first "
            "two blocks and the last one protected, and with what later blocks write rescaled (surgery 'compensate') "
            "where that is exact for the family and whole blocks go in one round. Without an effort: hours where a "
            "GPU is there and at most a quarter of the blocks goes, else minutes. The paper compares seven searches "
            "under one objective and finds that the objective decides, which is why no longer search stands here."
        ),
    ),
)
