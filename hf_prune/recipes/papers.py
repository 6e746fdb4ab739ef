"""The two papers that this package began with."""

from hf_prune.method import ALPACA, C4, Method

_UIDL = "https://arxiv.org/abs/2403.17887"
_SLICEGPT = "https://arxiv.org/abs/2401.15024"

METHODS: tuple[Method, ...] = (
    Method(
        name="uidl",
        title="The contiguous blocks whose input and output are closest in angle",
        paper=_UIDL,
        measure="angular",
        planner="window",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=0,
        dataset=C4,
        cost="1 forward",
    ),
    Method(
        name="simple",
        title="The deepest blocks but the last, without measuring (heal afterwards)",
        paper=_UIDL,
        measure=None,
        planner="before_last",
        surgery="drop",
        healing="uidl",
        protect_first=0,
        protect_last=1,
        dataset=C4,
    ),
    Method(
        name="slicegpt",
        title="The smallest principal directions of the residual stream, as many in each layer",
        paper=_SLICEGPT,
        measure=None,
        planner="constant_width",
        surgery="slice",
        healing="slicegpt",
        protect_first=0,
        protect_last=0,
        dataset=ALPACA,
        cuts="width",
    ),
    Method(
        name="dynamic-slicing",
        title="The smallest principal directions of the residual stream, more of them in redundant layers",
        paper="https://arxiv.org/abs/2411.03513",
        measure="redundancy",
        planner="dynamic_width",
        surgery="slice",
        healing="slicegpt",
        protect_first=0,
        protect_last=0,
        dataset=ALPACA,
        cost="1 forward, and a sliced model for each schedule that is tried",
        cuts="width",
    ),
)
