"""The named recipes: what `method="..."` stands for."""

from dataclasses import dataclass

from hf_prune.errors import ConfigError
from hf_prune.registry import did_you_mean


@dataclass(frozen=True)
class Method:
    """One recipe.

    Attributes:
        name: what users type.
        title: one line for tables, help and cards.
        paper: URL.
        measure: registry name, or None where nothing is measured.
        planner: registry name.
        surgery: registry name.
        healing: name of the healing recipe.
        protect_first: blocks at the start that never go.
        protect_last: blocks at the end that never go.
        dataset: the paper's dataset as (id, config, calibration split, healing split), or None.
        cuts: whole "layers", or the "width" of the residual stream.
    """

    name: str
    title: str
    paper: str
    measure: str | None
    planner: str
    surgery: str
    healing: str
    protect_first: int
    protect_last: int
    dataset: tuple[str, str, str, str] | None
    cuts: str = "layers"


_UIDL = "https://arxiv.org/abs/2403.17887"
_SLICEGPT = "https://arxiv.org/abs/2401.15024"
# Both slicing papers calibrate on it and on WikiText-2, and find it the better one by far for tasks.
_ALPACA = ("tatsu-lab/alpaca", "default", "train", "train")
_C4 = ("allenai/c4", "en", "validation", "train")

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
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
            dataset=_C4,
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
            dataset=_C4,
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
            dataset=_ALPACA,
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
            dataset=_ALPACA,
            cuts="width",
        ),
    )
}


def get_method(name: str) -> Method:
    """Look up a recipe.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(
            f"unknown method '{name}'; expected one of: {', '.join(METHODS)}.{did_you_mean(str(name), list(METHODS))}"
        )
    return METHODS[name]
