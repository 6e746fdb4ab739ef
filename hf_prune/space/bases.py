"""Models to prune: a few to begin with, more by a search, and what one of them is before it is planned for."""

from hf_prune.errors import HubError
from hf_prune.space import disk
from hf_prune.space.asking import asking, look
from hf_prune.space.pair import Half, Visitor
from hf_prune.space.search import listed, typed
from hf_prune.space.weighing import weigh
from hf_prune.space.wishes import hub_id

SUGGESTED = (
    "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-360M",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen3-0.6B",
)
"""Small models with open licences."""

_MOST = 15


def search(text: str, visitor: Visitor) -> list[str]:
    """Text generators whose name holds a text, the most used first; the suggested ones where nothing was found.

    Args:
        text: what somebody typed; whatever cannot stand in a name is passed by.
        visitor: who asks.
    """
    wanted = typed(text)
    if len(wanted) < 2:
        return list(SUGGESTED)
    try:
        with asking("search the Hub", "the Hub", visitor):
            found = listed(visitor, limit=_MOST, text=wanted, filter="safetensors", pipeline_tag="text-generation")
            return found or list(SUGGESTED)
    except HubError:
        return list(SUGGESTED)


def describe(name: str, visitor: Visitor) -> Half:
    """Layers and size of a model, by its headers.

    Raises:
        PruneError: it is none that could be pruned, or is not open to this visitor.
    """
    found = look(hub_id(name), visitor)
    with disk.in_use(found.commit):
        return weigh(found, visitor).half
