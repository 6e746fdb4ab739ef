"""How many parameters a model has, and how many bytes its weights take."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from hf_prune.errors import MeasureError


@dataclass(frozen=True)
class WeightCount:
    """The size of a model in memory.

    Attributes:
        parameters: numbers that the weights stand for; tied ones once.
        bytes: that they take, quantization constants included; tied ones once.
        dtype: that most parameters are in: "bfloat16", "nf4", ...
    """

    parameters: int
    bytes: int
    dtype: str


def count_weights(model: nn.Module) -> WeightCount:
    """Count parameters and bytes.

    Weights that bitsandbytes holds in 4 bits count as the numbers they stand for, not as the bytes they are packed in.

    Raises:
        MeasureError: another quantization packs weights into integers, whose true number can't be told.
    """
    bytes_ = 0
    by_dtype: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        bytes_ += weight.numel() * weight.element_size()
        state = getattr(weight, "quant_state", None)
        if state is not None:
            by_dtype[state.quant_type] += torch.Size(state.shape).numel()
            bytes_ += sum(
                t.numel() * t.element_size() for t in state.as_dict().values() if isinstance(t, torch.Tensor)
            )
        elif _packed(model, weight):
            raise _uncountable(model, name, weight)
        else:
            by_dtype[str(weight.dtype).removeprefix("torch.")] += weight.numel()
    for name, buffer in model.named_buffers():
        if _packed(model, buffer):
            raise _uncountable(model, name, buffer)
    return WeightCount(by_dtype.total(), bytes_, by_dtype.most_common(1)[0][0])


def _method(model: nn.Module) -> str | None:
    settings = getattr(getattr(model, "config", None), "quantization_config", None)
    found = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return None if found is None else str(getattr(found, "value", found))


def _packed(model: nn.Module, tensor: torch.Tensor) -> bool:
    integers = tensor.ndim > 1 and not tensor.is_floating_point() and tensor.dtype != torch.bool
    return integers and _method(model) not in (None, "bitsandbytes")


def _uncountable(model: nn.Module, name: str, tensor: torch.Tensor) -> MeasureError:
    return MeasureError(
        f"'{name}' is {tensor.dtype} packed by '{_method(model)}': its parameters can't be counted. Load the model "
        "dequantized, or quantized by bitsandbytes"
    )
