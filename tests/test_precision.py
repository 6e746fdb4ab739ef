"""Half-precision weights computed with in float32: the same numbers, and the same tensors afterwards."""

import pytest
import torch

from hf_prune import precision
from hf_prune.architecture.decoder import structural_copy
from hf_prune.precision import fast_arithmetic, faster_dtype

from .making import logits
from .tiny import tiny_model, tokens


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that is slow in half precision."""
    monkeypatch.setattr(precision, "faster_dtype", lambda device, dtype: torch.float32)


def test_weights_compute_as_their_float32_copies(slow: None) -> None:
    model, ids = tiny_model("llama", tie_word_embeddings=True).bfloat16(), tokens()
    shared = structural_copy(model)
    expected = logits(tiny_like(model), ids)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    rounded = logits(model, ids)
    with fast_arithmetic(model):
        assert logits(model, ids).dtype == torch.float32
        assert torch.equal(logits(model, ids), expected)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert torch.equal(logits(model, ids), rounded) and torch.equal(logits(shared, ids), rounded)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def tiny_like(model: torch.nn.Module) -> torch.nn.Module:
    """A float32 model with the numbers of a half-precision one."""
    other = tiny_model("llama", tie_word_embeddings=True)
    other.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    for (_, mine), (_, theirs) in zip(other.named_buffers(), model.named_buffers(), strict=True):
        mine.copy_(theirs)  # rotary frequencies are rounded with the rest
    return other


def test_it_can_be_trained_after_use_in_inference_mode(slow: None) -> None:
    model = tiny_model("llama").bfloat16()
    with torch.inference_mode(), fast_arithmetic(model):
        model(input_ids=tokens())
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_weights_come_back_after_an_error(slow: None) -> None:
    model = tiny_model("llama").bfloat16()
    with pytest.raises(RuntimeError, match="inside"), fast_arithmetic(model):
        raise RuntimeError("inside")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_left_alone(slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama").double()
    with fast_arithmetic(model):
        assert model.dtype == torch.float64
    half = tiny_model("llama").bfloat16()
    monkeypatch.setattr(precision, "_fits", lambda tensors: False)
    with fast_arithmetic(half):
        assert half.dtype == torch.bfloat16


def test_the_faster_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert faster_dtype(cpu, torch.float32) == torch.float32 and faster_dtype(cpu, torch.float64) == torch.float64
    assert faster_dtype(torch.device("cuda"), torch.bfloat16) == torch.bfloat16
    seconds = {torch.float32: 1.0, torch.bfloat16: 0.5, torch.float16: 2.0}
    monkeypatch.setattr(precision, "_product_seconds", seconds.__getitem__)
    faster_dtype.cache_clear()
    assert faster_dtype(cpu, torch.bfloat16) == torch.bfloat16
    assert faster_dtype(cpu, torch.float16) == torch.float32
    faster_dtype.cache_clear()


def test_a_busy_processor_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first few products take long where others have the processor: those of half precision, by chance."""
    now = [0.0]

    def seconds(dtype: torch.dtype) -> float:
        took = 0.0002 if dtype == torch.float32 else 0.0001 if now[0] > 0.01 else 0.003
        now[0] += took
        return took

    monkeypatch.setattr(precision, "_product_seconds", seconds)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    faster_dtype.cache_clear()
    assert faster_dtype(torch.device("cpu"), torch.bfloat16) == torch.bfloat16
    faster_dtype.cache_clear()
