"""The frozen prefix, computed once: equal losses, less work, and nobody else's states."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.errors import CheckpointError, ConfigError
from hf_prune.healing.prefix import choose_prefix, freeze_below, frozen_depth
from hf_prune.healing.prefix_store import Opened, disk_room, find_entry, open_prefix
from hf_prune.healing.row_store import RowStore
from hf_prune.healing.rows import Row, Rows, collate
from hf_prune.healing.step import Step, parse_losses
from hf_prune.healing.teacher import Resident
from hf_prune.healing.weights import Weights
from tests.healing.support import settings, text
from tests.tiny import tiny_model

FAMILIES = ("llama", "gpt2", "opt", "qwen3", "gemma3_text")
DEPTH, FROZEN, PASSES = 6, 4, 3
DROPOUT = {"gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}, "opt": {"dropout": 0.1}}


def even_rows(count: int = 6, length: int = 12) -> Rows:
    """Rows of one length: sums over them round alike in any batch."""
    rows = Rows.of(text(count, seed=0, length=2 * length)).rows
    return Rows([Row(row.input_ids[:length], row.labels[:length]) for row in rows])


def opened(decoder: Decoder, rows: Rows, folder: Path, way: str | None = "store", **changes: Any) -> Opened:
    given: dict[str, Any] = {
        "frozen": FROZEN, "shared": 0, "passes": PASSES, "room": 10**9, "folder": folder, "fingerprint": "tiny",
        "made_by": ("float32",), "autocast": False,
    }  # fmt: skip
    return open_prefix(decoder, rows, way, **(given | changes))


class Run:
    """Training as the trainer does it: train mode before every step, rows in another order in every pass."""

    def __init__(self, model_type: str, rows: Rows, folder: Path, way: str, *, checkpointing: bool = False) -> None:
        self.rows = rows
        self.model = tiny_model(model_type, DEPTH, **DROPOUT.get(model_type, {}))
        self.decoder = decoder_of(self.model)
        above = tuple(self.decoder.block_prefix(layer) for layer in range(FROZEN, DEPTH))
        names = [name for name, _ in self.model.named_parameters() if name.startswith(above)]
        self.chosen = Weights.of(self.decoder, names)
        self.chosen.begin(self.model, settings())
        if checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        teacher = None
        if way == "share":
            original = decoder_of(tiny_model(model_type, DEPTH, **DROPOUT.get(model_type, {})))
            given = {"predictions": True, "shared": FROZEN, "device": torch.device("cpu")}
            teacher = Resident(original, range(DEPTH), (), **given)
        self.opened = opened(self.decoder, rows, folder, way, shared=FROZEN if teacher else 0)
        self.step = Step(
            self.decoder, parse_losses(settings()), teacher=teacher, frozen=self.chosen.lowest,
            prefix=self.opened.prefix, tuples=self.opened.tuples,
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-3)

    def train(self, passes: range = range(PASSES)) -> list[float]:
        return [loss for number in passes for loss in self.one_pass(number)]

    def one_pass(self, number: int, steps: int | None = None) -> list[float]:
        torch.manual_seed(number)
        order = torch.randperm(len(self.rows)).split(2)
        return [self._one_step(indices.tolist()) for indices in order[:steps]]

    def _one_step(self, indices: list[int]) -> float:
        inputs = collate([self.rows[index] for index in indices])
        self.model.train()
        total, _ = self.step(self.model, inputs)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total.detach())


@contextmanager
def counted(decoder: Decoder) -> Iterator[Counter[int]]:
    """How often each block really computes: told by its first submodule, which a stub does not reach."""
    found: Counter[int] = Counter()

    def count(layer: int) -> Any:
        return lambda *_: found.update([layer])

    handles = [
        next(block.children()).register_forward_pre_hook(count(layer)) for layer, block in enumerate(decoder.blocks)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_losses_and_weights_are_equal_to_the_bit_however_the_prefix_is_had(model_type, tmp_path):
    rows = even_rows()
    plain = Run(model_type, rows, tmp_path / "none", "recompute")
    expected, trained = plain.train(), plain.chosen.state(plain.model)
    assert len(set(expected)) == len(expected), "the model learns nothing"
    for way in ("store", "share"):
        run = Run(model_type, rows, tmp_path / way, way)
        assert run.opened.prefix is not None
        assert run.train() == expected, way
        state = run.chosen.state(run.model)
        assert all(torch.equal(state[name], trained[name]) for name in trained), way


def test_rows_of_unequal_length_are_kept_without_their_pads(tmp_path):
    rows = Rows.of(text(6, seed=0, length=16))
    assert len({len(row.input_ids) for row in rows.rows}) > 2
    plain, run = Run("gpt2", rows, tmp_path, "recompute"), Run("gpt2", rows, tmp_path, "store")
    # Sums over other numbers of pads may round otherwise.
    assert run.train() == pytest.approx(plain.train(), rel=1e-5)
    assert run.opened.prefix.store.bytes == rows.tokens * 32 * 4 + len(rows) * 8


def test_packed_rows_are_stored_too(tmp_path):
    rows = Rows.packed(text(8, seed=0, length=10), 24)
    assert "position_ids" in rows[0]
    plain, run = Run("llama", rows, tmp_path, "recompute"), Run("llama", rows, tmp_path, "store")
    assert run.train() == pytest.approx(plain.train(), rel=1e-5)
    with counted(run.decoder) as blocks:
        run.one_pass(PASSES)
    assert set(blocks) == set(range(FROZEN, DEPTH))


def test_blocks_of_the_prefix_run_in_the_first_pass_alone(tmp_path):
    run = Run("llama", even_rows(), tmp_path, "store")
    with counted(run.decoder) as first:
        run.one_pass(0)
    with counted(run.decoder) as second:
        run.one_pass(1)
    assert first == dict.fromkeys(range(DEPTH), 3)
    assert second == dict.fromkeys(range(FROZEN, DEPTH), 3)


def test_a_batch_with_a_row_that_is_not_there_yet_is_computed_whole_and_kept(tmp_path):
    rows = even_rows()
    run, plain = Run("llama", rows, tmp_path, "store"), Run("llama", rows, tmp_path, "recompute")
    for either in (run, plain):
        either.one_pass(0, steps=1)
    assert run.opened.prefix.store.left == 4
    assert [run.one_pass(1), run.one_pass(2)] == [plain.one_pass(1), plain.one_pass(2)]
    assert run.opened.prefix.store.left == 0


def test_a_killed_run_goes_on_with_the_rows_that_it_has(tmp_path):
    rows = even_rows()
    Run("llama", rows, tmp_path, "store").one_pass(0, steps=2)
    again, plain = Run("llama", rows, tmp_path, "store"), Run("llama", rows, tmp_path, "recompute")
    assert again.opened.prefix.store.left == 2
    with counted(again.decoder) as blocks:
        found = again.one_pass(0)
    assert (blocks[0], blocks[FROZEN]) == (1, 3)
    assert found == plain.one_pass(0)


def test_activation_checkpointing_stays_right(tmp_path):
    rows = even_rows()
    plain = Run("llama", rows, tmp_path, "recompute")
    run = Run("llama", rows, tmp_path, "store", checkpointing=True)
    assert any(module.gradient_checkpointing for module in run.decoder.blocks)
    assert run.train() == plain.train()


@pytest.mark.parametrize("way", ["recompute", "store"])
def test_no_graph_is_built_below_what_is_trained(way, tmp_path):
    run = Run("gpt2", even_rows(), tmp_path, way)
    seen = []
    run.decoder.blocks[FROZEN].register_forward_pre_hook(lambda _block, args: seen.append(args[0].requires_grad))
    run.decoder.blocks[FROZEN + 1].register_forward_pre_hook(lambda _block, args: seen.append(args[0].requires_grad))
    run.one_pass(0, steps=1)
    assert seen == [False, True]


def test_dropout_stays_on_above_the_prefix_and_goes_below(tmp_path):
    run = Run("gpt2", even_rows(), tmp_path, "recompute")
    run.model.train()
    freeze_below(run.decoder, FROZEN)
    dropping = {
        name for name, module in run.model.named_modules() if isinstance(module, torch.nn.Dropout) and module.training
    }
    assert dropping and all(name.startswith(("transformer.h.4.", "transformer.h.5.")) for name in dropping)
    run.model.train()
    freeze_below(run.decoder, 0)
    assert run.model.transformer.drop.training


def test_states_of_another_model_are_refused(tmp_path):
    rows = even_rows()
    Run("llama", rows, tmp_path, "store").one_pass(0)
    decoder = decoder_of(tiny_model("llama", DEPTH))
    for changes in ({"fingerprint": "other"}, {"made_by": ("bfloat16",)}, {"frozen": 3}):
        with pytest.raises(CheckpointError, match=r"hidden states entering block 4 of .*Delete that folder"):
            opened(decoder, rows, tmp_path, **changes)
    with pytest.raises(CheckpointError, match="of another key"):
        opened(decoder, Rows(rows.rows[::-1]), tmp_path)
    assert opened(decoder, rows, tmp_path).prefix.store.left == 0


def test_too_much_for_the_budget_is_refused_before_anything_is_written(tmp_path):
    decoder, rows = decoder_of(tiny_model("llama", DEPTH)), Rows.of(text(6, 0))
    size = rows.tokens * 32 * 4 + 8 * len(rows)
    with pytest.raises(
        ConfigError, match=rf"takes {size:,} bytes on disk; expected at most {size - 1:,} bytes .* Raise the budget"
    ):
        opened(decoder, rows, tmp_path / "rows", room=size - 1)
    assert not (tmp_path / "rows").exists()
    assert opened(decoder, rows, tmp_path / "rows", room=size).prefix is not None


def test_what_it_takes_is_said_before(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hf_prune"):
        found = opened(decoder_of(tiny_model("llama", DEPTH)), even_rows(), tmp_path)
    assert "128 bytes a token (32 x float32)" in caplog.text and "pay from the second pass on" in caplog.text
    assert "first 4 of 6 blocks" in found.reused and "128 bytes a token" in found.reused


def test_the_states_have_the_dtype_in_which_they_are_made():
    decoder = decoder_of(tiny_model("llama", DEPTH).to(torch.bfloat16))
    assert find_entry(decoder, FROZEN, torch.arange(3, 12), autocast=True).token_bytes == 32 * 2
    plain = decoder_of(tiny_model("llama", DEPTH))
    assert find_entry(plain, FROZEN, torch.arange(3, 12), autocast=False).token_bytes == 32 * 4


@pytest.mark.parametrize("silently", [False, True], ids=["it fails without", "it goes on without"])
def test_a_model_whose_later_blocks_read_more_than_the_stream_is_run_anew(silently, tmp_path):
    model = tiny_model("llama", DEPTH)
    decoder = decoder_of(model)
    early = []
    decoder.blocks[1].mlp.register_forward_hook(lambda _module, _args, output: early.append(output))

    def reads(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output if silently and not early else output + early.pop()

    decoder.blocks[5].mlp.register_forward_hook(reads)
    found = opened(decoder, even_rows(), tmp_path, None)
    assert found.prefix is None
    with pytest.raises(ConfigError, match="cannot begin at block 4 from the hidden states that enter it alone"):
        opened(decoder, even_rows(), tmp_path, "store")


def test_probing_leaves_the_mode_of_the_model_alone():
    model = tiny_model("gpt2", DEPTH, **DROPOUT["gpt2"]).train()
    find_entry(decoder_of(model), FROZEN, torch.arange(3, 9), autocast=False)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("given", "way"),
    [
        ({}, "store"),
        ({"frozen": 0}, "recompute"),
        ({"passes": 1.0}, "recompute"),
        ({"passes": 1.9}, "recompute"),
        ({"room": 99}, "recompute"),
        ({"unfit": "it reads more"}, "recompute"),
        ({"shared": 4}, "share"),  # without a file, and in the first pass too
        ({"shared": 1}, "store"),  # the cut begins low, and what is trained does not
        ({"shared": 1, "passes": 1.0}, "share"),
        ({"shared": 4, "frozen": 0}, "recompute"),
    ],
)
def test_the_way_is_chosen_by_what_it_spares(given, way):
    choice = choose_prefix(None, **({"frozen": 4, "shared": 0, "passes": 3.0, "size": 100, "room": 100} | given))
    assert choice.way == way and choice.note is None


@pytest.mark.parametrize(
    ("asked", "given", "message"),
    [
        ("store", {"frozen": 0}, "there is no frozen prefix"),
        ("share", {"frozen": 0}, "there is no frozen prefix"),
        ("share", {}, "no original model is in memory"),
        ("store", {"unfit": "it reads more"}, "it reads more. Take 'recompute'"),
        ("store", {"room": 99}, "Raise the budget"),
    ],
)
def test_what_cannot_be_had_is_refused(asked, given, message):
    with pytest.raises(ConfigError, match=message):
        choose_prefix(asked, **({"frozen": 4, "shared": 0, "passes": 3.0, "size": 100, "room": 100} | given))


def test_storing_for_one_pass_is_done_where_it_is_asked_for_and_said_not_to_pay():
    given = {"frozen": 4, "shared": 0, "size": 100, "room": 100}
    assert "does not pay" in (choose_prefix("store", passes=1.0, **given).note or "")
    assert choose_prefix("store", passes=2.0, **given).note is None


def test_the_prefix_ends_below_what_is_trained_and_what_is_compared():
    assert frozen_depth(5, ()) == 5
    assert frozen_depth(5, (3, 6)) == 3
    assert frozen_depth(0, (3, 6)) == 0


def test_the_budget_is_a_size_or_a_tenth_of_the_free_disk(tmp_path, monkeypatch):
    assert disk_room("2MB", tmp_path) == 2_000_000
    assert disk_room("2MB", tmp_path, taken=500_000) == 1_500_000
    with pytest.raises(ConfigError, match="memory budget 'much'"):
        disk_room("much", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 10_000})())
    assert disk_room(None, tmp_path / "not" / "there") == 1000
    RowStore(tmp_path / "rows", "a", [100], {"states": (2, torch.float32)})
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 9000})())
    layout = (tmp_path / "rows" / "store.json").stat().st_size
    assert disk_room(None, tmp_path / "rows") == (9000 + 808 + layout) // 10  # as before it was written, but for that
