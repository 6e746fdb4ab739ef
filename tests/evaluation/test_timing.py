"""Models that take turns: who, when, what is counted; and the whole way through a run, killed in between too."""

import dataclasses
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from hf_prune import Pruner
from hf_prune.config import EvaluationConfig
from hf_prune.evaluation import stage as stage_module
from hf_prune.evaluation import timing as module
from hf_prune.evaluation.flops import _MORE, flops_per_token
from hf_prune.evaluation.speed import Run
from hf_prune.evaluation.timing import Contestant, take_turns
from hf_prune.records import Evaluation
from hf_prune.run import run
from tests.cli.support import fast, planted, recipe
from tests.making import logits
from tests.tiny import tiny_model, tokens

CONFIG = EvaluationConfig(max_length=16, new_tokens=4, speed_rounds=3, speed_batch=2)
SPEED = {"speed": True, "speed_rounds": 2}


class Ring:
    """Contestants whose loading, runs and files are all counted on one clock."""

    def __init__(self, monkeypatch, folder):
        self.now, self.seen, self.alive = 0.0, [], weakref.WeakSet()
        self.folder = folder
        monkeypatch.setattr(module, "now", lambda device: self.now)
        monkeypatch.setattr(module, "timed", self.timed)
        monkeypatch.setattr(module, "_read", lambda path: self.seen.append(("read", path.name)))

    def timed(self, model, **settings):
        self.seen.append(("timed", model.name, settings))
        self.now += 1
        return [Run(prefill=self.now, decode=2 * self.now)] * 2

    def contestant(self, name, files=2):
        def get():
            gc.collect()
            assert not self.alive, "two models are in memory"
            model = tiny_model("llama", 1)
            model.name = name
            self.alive.add(model)
            self.seen.append(("load", name))
            self.now += 10
            return model

        paths = tuple(self.folder / f"{name}{number}" for number in range(files))
        for number, path in enumerate(paths):
            path.write_bytes(b"0" * (100 + number))
        return Contestant(name, get, paths)


def test_turns(monkeypatch, tmp_path):
    ring = Ring(monkeypatch, tmp_path)
    one, two = take_turns([ring.contestant("a"), ring.contestant("b", files=0)], CONFIG)
    asked = {"prompt_tokens": 16, "new_tokens": 4, "batch": 2, "seed": 0}
    turn_a = [("read", "a0"), ("read", "a1"), ("load", "a"), ("timed", "a", asked)]
    assert ring.seen == (turn_a + [("load", "b"), ("timed", "b", asked)]) * 3
    # The clock stands at 11, 22, 33, ... after the turns; a has the odd ones.
    assert one.speed.prefill.median == 2 * 16 / 33 and two.speed.prefill.median == 2 * 16 / 44
    assert one.speed.prefill.maximum == 2 * 16 / 11 and one.speed.prefill.minimum == 2 * 16 / 55
    assert one.speed.decode.median == 2 * 4 / 66
    assert (one.speed.batch, one.speed.prompt_tokens, one.speed.new_tokens) == (2, 16, 4)
    assert (one.speed.runs, one.speed.rounds) == (6, 3)
    assert dataclasses.astuple(one.load) == (10, 10, 10) and two.load is None
    assert one.disk_bytes == 201 and two.disk_bytes is None
    assert one.flops_per_token == two.flops_per_token > 0


def test_lengths_fit_the_model():
    model = tiny_model("llama", 1, max_position_embeddings=12)
    (found,) = take_turns([Contestant("a", lambda: model)], dataclasses.replace(CONFIG, speed_rounds=1))
    assert (found.speed.prompt_tokens, found.speed.new_tokens, found.speed.runs) == (8, 4, 5)
    assert found.flops_per_token == flops_per_token(model, 8)


# --- FLOPs


def test_flops_by_hand():
    """2 · parameters but the embedding, and 4 · length · width for the scores and sums of attention."""
    model, length = tiny_model("llama", 3), 20
    weights = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in n)
    width = model.config.num_attention_heads * model.config.head_dim
    assert flops_per_token(model, length) == 2 * weights + 3 * 4 * length * width


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_flops_of_experts_by_hand(kind):
    """Of the experts only those count that a token goes to."""
    model = tiny_model(kind, 4)
    config, dense, experts = model.config, 0, 0
    for name, weight in model.named_parameters():
        if ".experts." in name:
            experts += weight.numel() * config.num_experts_per_tok / len(weight)
        elif weight.ndim == 2 and "embed_tokens" not in name:
            dense += weight.numel()
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // 4)
    assert flops_per_token(model, 16) == 2 * (dense + experts) + 4 * 4 * 16 * width


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_flops_of_grouped_queries_on_a_gpu(kernel, monkeypatch):
    """The kernels of GPUs, called with shapes alone: torch's own formula for them knew no grouped queries in 2.11."""

    def refused(*_: object) -> int:
        raise AssertionError("sdpa_flop_count: query/key/value shapes are incompatible")

    monkeypatch.setattr(flop_counter, "sdpa_flop_count", refused)
    query, key = (torch.empty(1, heads, 16, 32, dtype=torch.float16, device="meta") for heads in (8, 2))
    call = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention")
    rest = () if kernel == "flash" else (None, False)
    with FlopCounterMode(display=False, custom_mapping=_MORE) as counter:
        call(query, key, key, *rest)
    assert counter.get_total_flops() == 2 * 8 * 16 * 16 * (32 + 32)


def test_flops_of_half_the_blocks_are_less_and_training_mode_stays():
    small, large = (flops_per_token(tiny_model("gpt2", depth).train(), 16) for depth in (2, 4))
    head = 2 * 96 * 32
    assert 2 * (small - head) == large - head
    model = tiny_model("gpt2", 1).train()
    flops_per_token(model, 4)
    assert model.training


def test_flops_of_quantized_weights_are_not_told():
    model = tiny_model("llama", 1)
    model.hf_quantizer = object()
    assert flops_per_token(model, 4) is None


# --- the whole way


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `fast`."""
    fast(monkeypatch)


def complete(evaluation: Evaluation, *labels: str, loaded: bool = True) -> None:
    """Every model took the same turns, and what lies in files says so."""
    assert [m.label for m in evaluation.models] == list(labels)
    for model in evaluation.models:
        assert (model.speed.runs, model.speed.rounds, model.speed.batch) == (10, 2, 1)
        assert model.flops_per_token > 0
        assert (model.load is not None) == (model.disk_bytes is not None) == loaded
    first = evaluation.models[0]
    assert all(m.flops_per_token < first.flops_per_token for m in evaluation.models[1:])
    if loaded:
        assert all(m.disk_bytes < first.disk_bytes for m in evaluation.models[1:])


def folder_pruner(base, tmp_path, **fields) -> Pruner:
    return Pruner.from_pretrained(
        base, recipe(layers=[2, 5], evaluation=SPEED, **fields), run_folder=tmp_path / "run", progress=False
    )


def test_a_folder_pruned_and_healed(base, tmp_path):
    pruner = folder_pruner(base, tmp_path)
    complete(pruner.evaluate(), "original")
    pruner.prune()
    pruned = logits(pruner.model, tokens())
    complete(pruner.evaluate(), "original", "pruned")
    assert torch.equal(logits(pruner.model, tokens()), pruned)
    pruner.heal()
    healed = logits(pruner.model, tokens())
    assert not torch.equal(healed, pruned)
    evaluation = pruner.evaluate()
    complete(evaluation, "original", "pruned", "healed")
    assert torch.equal(logits(pruner.model, tokens()), healed)
    assert evaluation.models[1].disk_bytes == (tmp_path / "run" / "pruned" / "model.safetensors").stat().st_size
    assert pruner.finished().evaluation == evaluation == Evaluation.load(tmp_path / "run")


@pytest.mark.slow
def test_an_adapter(base, tmp_path):
    pruner = folder_pruner(base, tmp_path, healing={"output": "adapter"})
    pruner.heal()
    healed = logits(pruner.model, tokens())
    evaluation = pruner.evaluate()
    assert torch.allclose(logits(pruner.model, tokens()), healed, atol=1e-6)
    original, pruned, model = evaluation.models
    adapter = tmp_path / "run" / "healing" / "adapter" / "adapter_model.safetensors"
    assert model.disk_bytes == pruned.disk_bytes + adapter.stat().st_size
    assert pruned.flops_per_token < model.flops_per_token  # the adapter works, too
    out = pruner.save_pretrained(tmp_path / "out")
    again = Pruner.from_pruned(out, original=base, progress=False)
    taken_up = again.evaluate()
    assert [m.label for m in taken_up.models] == ["original", "pruned", "healed"]
    assert taken_up.models[2].disk_bytes == model.disk_bytes and taken_up.models[2].load is not None
    assert torch.allclose(logits(again.model, tokens()), healed, atol=1e-6)


@pytest.mark.slow
def test_a_merged_folder_that_is_taken_up(base, tmp_path):
    result = run(base, recipe(layers=[2, 5], evaluation=SPEED), tmp_path / "out", heal=True, progress=False)
    complete(result.evaluation, "original", "pruned", "healed")
    assert not (tmp_path / "out.run").exists()
    pruner = Pruner.from_pruned(tmp_path / "out", original=base, progress=False)
    before = logits(pruner.model, tokens())
    complete(pruner.evaluate(), "original", "healed")
    assert torch.equal(logits(pruner.model, tokens()), before)


def test_a_model_in_memory_stays_there(base, tmp_path):
    given = Pruner.from_pretrained(base, recipe(layers=[2, 5]), progress=False)
    pruner = Pruner(
        given.model, given.tokenizer, recipe(layers=[2, 5], evaluation=SPEED), run_folder=tmp_path / "run",
        progress=False,
    )  # fmt: skip
    model = pruner.prune()
    complete(pruner.evaluate(), "original", "pruned", loaded=False)
    assert pruner.model is model and len(model.model.layers) == 6
    assert not (tmp_path / "run" / "pruned").exists()
    pruner.heal()
    healed = pruner.model
    original, pruned, last = pruner.evaluate().models
    assert pruner.model is healed
    assert original.load is None and last.load is None and pruned.load is not None  # healing has saved the pruned one
    assert all(m.speed.rounds == 2 for m in (original, pruned, last))


def test_timing_is_done_once_and_again_after_a_kill(base, tmp_path, monkeypatch):
    calls = []

    def counted(contestants, *args, **kwargs):
        calls.append([c.label for c in contestants])
        if len(calls) == 1:
            raise KeyboardInterrupt
        return take_turns(contestants, *args, **kwargs)

    monkeypatch.setattr(stage_module, "take_turns", counted)
    settings = recipe(layers=[2, 5], evaluation=SPEED)
    with pytest.raises(KeyboardInterrupt):
        run(base, settings, tmp_path / "out", heal=True, progress=False)
    monkeypatch.setattr("hf_prune.evaluation.stage.evaluate", None)  # all else was measured
    with monkeypatch.context() as patch:
        patch.setattr("hf_prune.pruner.write_output", None)  # killed again, after the timing
        with pytest.raises(TypeError):
            run(base, settings, tmp_path / "out", heal=True, progress=False)
    found = run(base, settings, tmp_path / "out", heal=True, progress=False)
    assert calls == [["original", "pruned", "healed"]] * 2
    complete(found.evaluation, "original", "pruned", "healed")


def test_what_was_not_asked_for_is_not_timed(base, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_module, "take_turns", None)
    pruner = Pruner.from_pretrained(base, recipe(layers=[2]), run_folder=tmp_path / "run", progress=False)
    model = pruner.prune()
    assert all(m.speed is None and m.load is None for m in pruner.evaluate().models)
    assert pruner.model is model and not (tmp_path / "run" / "pruned").exists()
