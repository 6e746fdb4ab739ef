"""`method="auto"`: which named method that is, for this model, this machine and the time there is."""

import dataclasses
import logging
from typing import Any

from hf_prune.amounts import layers_to_drop
from hf_prune.config import PrunerConfig
from hf_prune.method import Effort

logger = logging.getLogger(__name__)

AUTO = "auto"

_METHODS: dict[Effort, str] = {"instant": "simple", "minutes": "shortgpt-iterative", "hours": "greedy-kl"}
_MOST_OF_HOURS = 0.25
"""Share of the layers up to which a search by divergence pays: beyond it healing decides."""


def resolved(config: PrunerConfig, depth: int, *, gpu: bool, rescales: bool) -> PrunerConfig:
    """A recipe without "auto" in it: the named method, and what is changed of it, written out.

    Defaults rest on results at scale (greedy searches by divergence beat scores of single layers where a quarter or
    less goes; block influence has to be measured again behind each cut; the first and last blocks are not spare), not
    on the small models that this package was tried on.

    Args:
        config: any recipe; one of another method is returned as it is.
        depth: blocks of the model.
        gpu: whether there is one.
        rescales: whether what later blocks write can be rescaled exactly; see `architecture.writes.can_rescale`.
    """
    if config.method != AUTO:
        return config
    effort = config.effort or ("hours" if gpu and _share(config, depth) <= _MOST_OF_HOURS else "minutes")
    changes: dict[str, Any] = {"method": _METHODS[effort], "effort": None}
    if effort != "instant":
        changes |= {"protect_first": 2, "protect_last": 1}
        # Parts of blocks fall silent, and rounds heal between cuts: nothing can stand in for what goes.
        whole = config.rounds == 1 and config.unit in (None, "block")
        if rescales and whole and config.surgery is None:
            changes["surgery"] = "compensate"
        own = {name: getattr(config, name) for name in ("protect_first", "protect_last")}
        changes |= {name: value for name, value in own.items() if value is not None}
    found = dataclasses.replace(config, **changes)
    logger.info("method 'auto' (%s) is '%s', surgery '%s'", effort, found.method, found.recipe().surgery)
    return found


def _share(config: PrunerConfig, depth: int) -> float:
    if config.layers is not None:
        return len(config.layers) / depth
    if config.drop_layers is None and (config.sparsity is None or config.amount_of != "layers"):
        return config.sparsity or 1.0
    return layers_to_drop(config, depth) / depth
