"""What a named recipe is made of, and the datasets that papers name."""

from dataclasses import dataclass, field
from typing import Any, Literal

from hf_prune.units import UnitKind

Effort = Literal["instant", "minutes", "hours"]
"""How long method "auto" may take to choose: without reading text, by single passes, by trying cuts."""


SHIPPED = ("nbl", "emulate", "linear_patch")
"""Surgeries whose results need modeling code of their own, which is shipped with them."""


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
        unit: of what it removes: whole blocks, their attention, their MLP, or both of these in one list.
        measure_kwargs: options of the measure that make the recipe; a user's own go on top.
        planner_kwargs: likewise of the planner.
        surgery_kwargs: likewise of the surgery.
        cost: what choosing costs, in words, such as "1 forward" of the calibration text, or "n L / 2 forwards".
        note: what a user should know, where the paper and its released code differ, or this one from both.
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
    unit: UnitKind = "block"
    measure_kwargs: dict[str, Any] = field(default_factory=dict)
    planner_kwargs: dict[str, Any] = field(default_factory=dict)
    surgery_kwargs: dict[str, Any] = field(default_factory=dict)
    cost: str = "none"
    note: str = ""

    @property
    def plain(self) -> bool:
        """Whether the result loads with stock transformers, if its options do not ask for something else."""
        return self.cuts != "width" and self.surgery not in SHIPPED


# Both slicing papers calibrate on it and on WikiText-2, and find it the better one by far for tasks.
ALPACA = ("tatsu-lab/alpaca", "default", "train", "train")
C4 = ("allenai/c4", "en", "validation", "train")
WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1", "train", "train")
