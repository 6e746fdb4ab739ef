"""Chosen by gradients, weights, or what outputs and coalitions of layers tell."""

from hf_prune.method import WIKITEXT, Method

_SHORTENED_LLAMA = "https://arxiv.org/abs/2402.02834"
_DEEPER_LOOK = "https://arxiv.org/abs/2407.16286"

METHODS: tuple[Method, ...] = (
    Method(
        name="shortened-llama-taylor",
        title="The blocks whose weights the loss would miss least, by gradients",
        paper=_SHORTENED_LLAMA,
        measure="taylor",
        planner="top_k",
        surgery="drop",
        healing="uidl",
        protect_first=4,
        protect_last=2,
        dataset=None,
        cost="about 3 forwards, and a float32 gradient of each weight in memory",
        note="The paper's Taylor+: its '+' keeps the first four and the last two blocks. It takes 10 samples of 128 "
        "tokens of BookCorpus. Where gradients have no room, measure_kwargs blocks_at_once=1 takes a pass for each "
        "block.",
    ),
    Method(
        name="shortened-llama-magnitude",
        title="The blocks with the smallest weights, without text",
        paper=_SHORTENED_LLAMA,
        measure="magnitude",
        planner="top_k",
        surgery="drop",
        healing="uidl",
        protect_first=4,
        protect_last=2,
        dataset=None,
        cost="none: the weights alone are read",
        note="The paper's Mag+, there a baseline that falls far behind; its '+' keeps the first four and the last two "
        "blocks.",
    ),
    Method(
        name="finercut",
        title="One attention or MLP at a time, the one without which logits turn least",
        paper="https://arxiv.org/abs/2405.18218",
        measure="logit_angle",
        planner="greedy",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=WIKITEXT,
        unit="joint",
        cost="about n L forwards for n attentions and MLPs",
        note="The paper compares three distances to the whole model's output; 'logit_l2' and 'logit_js' are the other "
        "two. It has no released code: that distances are means over predicted tokens is this package's reading.",
    ),
    Method(
        name="effective-layer-pruning",
        title="One block at a time, the one without which the last features change least (CKA)",
        paper="https://arxiv.org/abs/2405.17081",
        measure="output_cka",
        planner="greedy",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=None,
        cost="about n L / 2 forwards",
        note="A method for vision models, where a row of features is a picture; here it is a token. The paper trains "
        "behind each removal; here the rest is scored again without training, always against the whole model.",
    ),
    Method(
        name="shapley",
        title="The blocks of the lowest Shapley value, near the whole model",
        paper="https://arxiv.org/abs/2409.14381",
        measure="shapley_near",
        planner="top_k",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=None,
        cost="at most L + 4 L forwards (2 orders, 3 blocks gone at most)",
        note="The paper explains layers by these values and prunes none. Its measure of worth is accuracy on tasks; "
        "here it is the loss on text. Measure 'shapley' takes whole orders of removal instead.",
    ),
    Method(
        name="deeper-look-shapley",
        title="The blocks without which random half models lose least",
        paper=_DEEPER_LOOK,
        measure="random_halves",
        planner="top_k",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=None,
        cost="32 forwards (64 half models)",
        note="The released code's default leaves out one block at a time instead, which orders blocks as measure "
        "'loss' does; and it draws each half alone, where here the other half is judged too. objective='logit_l2' is "
        "the paper's other version.",
    ),
)
