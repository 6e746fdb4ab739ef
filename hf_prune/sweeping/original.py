"""The original of many points: loaded once where there is room, and the same for each of them."""

from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from hf_prune import loading
from hf_prune.architecture.decoder import first_device, parameter_bytes, structural_copy
from hf_prune.errors import MeasureError
from hf_prune.loading import Source

_ROOM = 4.0
"""The original stays in memory where what is free is this many times its size: points need room beside it."""


class Original:
    """Hands out the original.

    Args:
        source: the base model.
        kwargs: of `loading.load_model`.
    """

    def __init__(self, source: Source, kwargs: dict[str, Any]) -> None:
        self._source, self._kwargs = source, kwargs
        self._model: PreTrainedModel | None = None
        self._sums: tuple[float, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether it stays in memory, so that all that are handed out are made of the same tensors."""
        return self._model is not None

    def get(self) -> PreTrainedModel:
        """The original; blocks may be cut out of it, but where it is `kept` no weight may be written into.

        Returns:
            A model that shares its tensors with the next one returned, or one loaded for this call.
        """
        if self._model is None:
            model = loading.load_model(self._source, **self._kwargs)
            if not has_room(model):
                return model
            self._model, self._sums = model, _sums(model)
        return structural_copy(self._model)

    def check_untouched(self) -> None:
        """Prove that what is kept is as it was: points behind one that wrote into it would measure another model.

        Raises:
            MeasureError: its weights are others; it is loaded anew for the next point.
        """
        if self._model is not None and _sums(self._model) != self._sums:
            self._model = None
            raise MeasureError(
                f"the weights of '{self._source.ref.id}' in memory were written into; expected a copy of those that "
                "change. What was measured so is worth nothing: please report this"
            )


def has_room(model: PreTrainedModel) -> bool:
    """Whether the model may stay in memory: small beside what is free, on one device, and not quantized."""
    placed = set((getattr(model, "hf_device_map", None) or {}).values())
    if len(placed) > 1 or getattr(model, "hf_quantizer", None) is not None:
        return False
    device = first_device(model)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return _ROOM * parameter_bytes(model) < free


@torch.no_grad()
def _sums(model: PreTrainedModel) -> tuple[float, ...]:
    """One number for each tensor of weights, by which it shows that one was written into."""
    found = []
    for weight in model.parameters():
        rows = weight.reshape(-1, weight.shape[-1]) if weight.ndim else weight.reshape(1, 1)
        # Each row counts otherwise, so that exchanged ones show; NaN would be unlike itself.
        factors = torch.arange(1, len(rows) + 1, dtype=torch.float64, device=rows.device)
        found.append(torch.nan_to_num(rows.sum(1, dtype=torch.float64) @ factors).item())
    return tuple(found)
