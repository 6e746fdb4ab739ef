"""Narrow the residual stream of every layer: the model becomes one of its family's sliced class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_prune.architecture import Decoder
from hf_prune.errors import ConfigError
from hf_prune.records import Plan
from hf_prune.registry import surgery
from hf_prune.slicing.export import export_plain
from hf_prune.slicing.options import SliceOptions
from hf_prune.slicing.points import Widths
from hf_prune.slicing.slicer import Settings, slice_model
from hf_prune.surgery.apply import check_model


@dataclass(frozen=True)
class Text:
    """What slicing looks at.

    Attributes:
        sequences: 1-D int64 calibration sequences.
        batch_size: of them at once.
        scratch: folder for hidden states that memory has no room for.
        progress: whether to show a bar.
    """

    sequences: Sequence[torch.Tensor]
    batch_size: int = 8
    scratch: Path | None = None
    progress: bool = False


@surgery(
    "slice",
    title="Rotate the residual stream and cut its smallest directions",
    url="https://arxiv.org/abs/2401.15024",
    cuts="width",
    needs="text",
)
def slice_widths(
    decoder: Decoder,
    widths: Widths,
    text: Text,
    *,
    basis: Any = SliceOptions.basis,
    orientation: Any = SliceOptions.orientation,
    weighting: Any = SliceOptions.weighting,
    tied: bool | None = SliceOptions.tied,
    slice_head: bool = SliceOptions.slice_head,
    seed: int = SliceOptions.seed,
) -> PreTrainedModel:
    """Slice a model (SliceGPT section 3); the base stays as it is. See `SliceOptions`.

    Args:
        decoder: the base.
        widths: of the stream at each point.
        text: calibration text.
        basis: see `SliceOptions`.
        orientation: likewise.
        weighting: likewise.
        tied: likewise.
        slice_head: likewise; the widths say it already.
        seed: likewise.
    """
    settings = Settings(
        basis=basis,
        orientation=orientation,
        weighting=weighting,
        tied=bool(tied),
        batch_size=text.batch_size,
        seed=seed,
        scratch=text.scratch,
    )
    return slice_model(decoder, widths, text.sequences, settings, progress=text.progress)


def apply_slicing(decoder: Decoder, plan: Plan, text: Text) -> PreTrainedModel:
    """Carry out a plan that slices.

    Args:
        decoder: the model that the plan was made for; it stays as it is.
        plan: what to do.
        text: calibration text.

    Returns:
        The sliced model; a plain one of the base's family where the plan says so.

    Raises:
        ConfigError: the plan was made for another model, or does not slice.
    """
    check_model(decoder, plan)
    if plan.slicing is None or len(plan.operations) != 1:
        raise ConfigError(f"the plan of method '{plan.method}' does not slice; expected one operation 'slice'")
    (operation,) = plan.operations
    entry = surgery.get(operation.kind)
    entry.check_options(operation.options, "surgery")
    cut = plan.slicing
    sliced = entry.function(decoder, Widths(cut.embed, cut.attn_out, cut.mlp_out), text, **operation.options)
    return export_plain(sliced) if cut.plain else sliced
