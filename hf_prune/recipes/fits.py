"""Something fitted stands in for what goes."""

from hf_prune.method import C4, WIKITEXT, Method

_REPLACEME = "https://arxiv.org/abs/2505.02819"
_REPLACEME_NOTE = (
    "The paper selects by the cosine distance of last tokens and calibrates on 8000 samples of SlimOrca. Its released "
    "code lets pads into the sums and inverts them without a ridge; here pads are left out, the ridge draws the map "
    "to the identity, and held-out text decides whether the map is used. It takes at least 10 tokens a channel."
)
_ACCEPTANCE = (
    "The paper's search, which grows windows while the last hidden states of the merged model stay close enough (τ), "
    "is not done: one window goes, chosen by cosine. The released code computes something else than the paper writes: "
    "its sum telescopes to the topmost block's linear maps (surgery option mode='copy_top'). The formula as written "
    "does far worse than dropping alone on the model that this package comes with: 11.1 nats a token against 4.1 "
    "without 4 of its 12 layers (4.1 with mode='copy_top', 4.2 with 'mean')."
)

METHODS: tuple[Method, ...] = (
    Method(
        name="prune-comp",
        title="The block that turns the stream least, again and again; a factor makes up for the magnitude",
        paper="https://arxiv.org/abs/2507.18212",
        measure="block_influence",
        planner="greedy",
        surgery="compensate",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=C4,
        cost="n + 1 forwards",
        note="The paper compensates behind each removal, before it scores again; here the rest is scored again "
        "uncompensated, and the factors are measured once, on the original. They are divided out of what later blocks "
        "write, which is the same function as the paper's and leaves tied embeddings alone.",
    ),
    Method(
        name="replaceme",
        title="A contiguous window; the linear map that comes closest stands in, folded into the MLP before",
        paper=_REPLACEME,
        measure="cosine",
        planner="window",
        surgery="replaceme",
        healing="uidl",
        protect_first=1,
        protect_last=0,
        dataset=C4,
        measure_kwargs={"tokens": "last"},
        cost="2 forwards",
        note=_REPLACEME_NOTE,
    ),
    Method(
        name="replaceme-cosine",
        title="A contiguous window; the linear map whose direction comes closest stands in, trained, folded likewise",
        paper=_REPLACEME,
        measure="cosine",
        planner="window",
        surgery="replaceme_cosine",
        healing="uidl",
        protect_first=1,
        protect_last=0,
        dataset=C4,
        measure_kwargs={"tokens": "last"},
        cost="2 forwards, and training of one matrix",
        note=_REPLACEME_NOTE,
    ),
    Method(
        name="llm-streamline",
        title="The contiguous window of the highest cosine; the block before is trained to do what they did",
        paper="https://arxiv.org/abs/2403.19135",
        measure="cosine",
        planner="window",
        surgery="streamline",
        healing="uidl",
        protect_first=1,
        protect_last=0,
        dataset=C4,
        cost="2 forwards, and training of one block",
        note="The paper replaces n + 1 blocks by one, chosen by the window of these n + 1; here the window of the n "
        "that go is chosen, and the block before them takes their part. It trains on 30 000 documents and more; here "
        "on the calibration text, several times, and held-out text decides whether the result is used. Its variants "
        "with an MLP in place of the block, or with the language modelling loss, are not done.",
    ),
    Method(
        name="laco",
        title="A contiguous window, merged into the block before as LaCo writes it",
        paper="https://arxiv.org/abs/2402.11187",
        measure="cosine",
        planner="window",
        surgery="merge",
        healing="uidl",
        protect_first=1,
        protect_last=0,
        dataset=WIKITEXT,
        surgery_kwargs={"mode": "sum"},
        cost="1 forward",
        note=_ACCEPTANCE,
    ),
    Method(
        name="slm",
        title="A contiguous window, merged into the block before as Sliding Layer Merging's code does",
        paper="https://arxiv.org/abs/2502.19159",
        measure="cosine",
        planner="window",
        surgery="merge",
        healing="uidl",
        protect_first=1,
        protect_last=1,
        dataset=WIKITEXT,
        surgery_kwargs={"mode": "copy_top"},
        cost="1 forward",
        note="Written like LaCo's sum; this is what the released code computes, the topmost block's linear maps with "
        "the lowest block's norms, which nearly is dropping the lower blocks. The paper's search, which grows windows "
        "while the last hidden states stay close enough (τ), is not done: one window goes, chosen by cosine.",
    ),
)
