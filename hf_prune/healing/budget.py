"""How much healing a machine can do: a quick measurement, a token budget, a time estimate."""

import time
from dataclasses import dataclass

import torch
from torch import nn

CPU_SECONDS = 30 * 60
"""What the default token budget of a CPU should take."""

_PROBE_TOKENS = 1024
_PROBE_SECONDS = 0.3
_TOKENS_PER_24_GIB = 2048
_CPU_TOKENS_PER_FORWARD = 4096

# A whole training step does more than the MLP that is probed: attention, the output layer and its softmax, adapters,
# the optimizer. On models of 4 M, 134 M and 368 M parameters it reached 0.20, 0.39 and 0.42 of the probe's rate.
_EFFICIENCY = 0.3


@dataclass(frozen=True)
class Throughput:
    """What a device does in one second.

    Attributes:
        flops: floating point operations per second in forward and backward of an MLP of the model's width.
        dtype: the faster one to compute in, "bfloat16" or "float32".
    """

    flops: float
    dtype: str

    def tokens_per_second(self, parameters: int) -> float:
        """Training tokens per second, at 6 operations per token and parameter."""
        return self.flops * _EFFICIENCY / (6 * parameters)


def probe(device: torch.device | str, parameters: int) -> Throughput:
    """Time an MLP of about the model's width, forward and backward, in bfloat16 and in float32; under a second or two.

    Args:
        device: where healing will run.
        parameters: of the model; decoders have about 12 · width² · (width / 128) of them.
    """
    device = torch.device(device)
    width = min(2048, max(128, round((parameters * 128 / 12) ** (1 / 3) / 64) * 64))
    rates = {dtype: _rate(device, width, dtype) for dtype in (torch.bfloat16, torch.float32)}
    best = max(rates, key=lambda dtype: rates[dtype])
    return Throughput(rates[best], str(best).removeprefix("torch."))


def _rate(device: torch.device, width: int, dtype: torch.dtype) -> float:
    # A generator of its own: measuring must not move the random numbers that training will use.
    generator = torch.Generator().manual_seed(0)
    up, down = nn.utils.skip_init(nn.Linear, width, 4 * width), nn.utils.skip_init(nn.Linear, 4 * width, width)
    with torch.no_grad():
        for parameter in (*up.parameters(), *down.parameters()):
            parameter.normal_(std=0.02, generator=generator)
    up, down = up.to(device, dtype), down.to(device, dtype)
    inputs = torch.randn(_PROBE_TOKENS, width, generator=generator).to(device, dtype).requires_grad_()
    operations = 6 * _PROBE_TOKENS * (up.weight.numel() + down.weight.numel())
    done, started = 0, 0.0
    while done == 0 or time.perf_counter() - started < _PROBE_SECONDS:
        down(nn.functional.silu(up(inputs))).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if not started:  # the first round pays for warming up
            started = time.perf_counter()
        else:
            done += 1
    return done * operations / (time.perf_counter() - started)


def machine_tokens(throughput: Throughput, parameters: int, *, at_most: int, seconds: float = CPU_SECONDS) -> int:
    """The largest power of two of training tokens that fits `seconds`, at least 1024 and at most `at_most`."""
    fits = max(1024, int(throughput.tokens_per_second(parameters) * seconds))
    return min(at_most, 1 << (fits.bit_length() - 1))


def eta(tokens: int, parameters: int, throughput: Throughput) -> float:
    """Seconds that training on `tokens` will take, roughly (within a factor of two)."""
    return tokens / throughput.tokens_per_second(parameters)


def tokens_per_forward(device: torch.device | str) -> int:
    """Tokens that one forward may hold: 2048 for each 24 GiB of GPU memory, 4096 on a CPU."""
    device = torch.device(device)
    if device.type != "cuda":
        return _CPU_TOKENS_PER_FORWARD
    return _TOKENS_PER_24_GIB * max(1, torch.cuda.get_device_properties(device).total_memory // (24 << 30))


def in_words(seconds: float) -> str:
    """A duration for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
