"""The original beside the pruned model: its states line up, nothing is held or run twice, all modes say the same."""

import copy
import logging
from contextlib import contextmanager

import pytest
import torch

from hf_prune import loading
from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError
from hf_prune.healing import heal
from hf_prune.healing.budget import Throughput
from hf_prune.healing.cost import Cost
from hf_prune.healing.held_out import held_out_loss
from hf_prune.healing.judge import Judge
from hf_prune.healing.origin import Origin
from hf_prune.healing.original import Computing
from hf_prune.healing.prefix import Shared
from hf_prune.healing.rows import Rows, collate
from hf_prune.healing.step import Step, compared_positions, parse_losses
from hf_prune.healing.teacher import Resident, same_blocks, share_tensors
from hf_prune.healing.teaching import Asked, asked, beside, check_losses, check_teacher, on_disk
from hf_prune.loading import Source
from hf_prune.records import ModelRef
from hf_prune.surgery.drop import prune_layers
from tests.healing.support import settings, split_text, text
from tests.tiny import VOCAB, tiny_model

DEPTH, KEPT = 6, (0, 1, 4, 5)
CPU = torch.device("cpu")
FAMILIES = ["llama", "gpt2", "qwen3", "opt"]


def pair(model_type="llama", **overrides):
    """A model and what is left of it without blocks 2 and 3, of tensors of its own."""
    original = tiny_model(model_type, DEPTH, **overrides)
    pruned = prune_layers(copy.deepcopy(original), [2, 3])
    return original, pruned


def origin_of(original, folder=None, **changes):
    source = None if folder is None else Source(ModelRef("o/b", None, "llama", DEPTH, "digest"), folder, False)
    fields = {"load": lambda: original, "source": None if source is None else lambda: source, "key": "weights"}
    return Origin(KEPT, DEPTH, **fields | changes)


def saved(original, folder):
    original.save_pretrained(folder)
    return folder


def inputs(rows=(0, 3, 1), samples=None):
    made = Rows.of(samples or text(6, seed=1))
    return collate([made[row] for row in rows])


@contextmanager
def counting(blocks):
    """How often what is in each block runs."""
    counts = [0] * len(blocks)

    def counter(at):
        def count(*_):
            counts[at] += 1

        return count

    inner = [next(m for m in block.children() if any(True for _ in m.parameters())) for block in blocks]
    handles = [module.register_forward_hook(counter(at)) for at, module in enumerate(inner)]
    yield counts
    for handle in handles:
        handle.remove()


NORMS = {
    "llama": "model.norm", "qwen3": "model.norm", "gpt2": "transformer.ln_f", "opt": "model.decoder.final_layer_norm"
}  # fmt: skip


@pytest.mark.parametrize("model_type", FAMILIES)
def test_states_are_those_that_enter_the_originals_blocks(model_type):
    original, _ = pair(model_type)
    batch = inputs()
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = original(**given, output_hidden_states=True, use_cache=False)
    decoder = decoder_of(original)
    for predictions in (True, False):
        teacher = Resident(decoder, KEPT, (1, 2, 3, 4), predictions=predictions, device=CPU)
        view = teacher.view(batch)
        assert torch.equal(view.states[1], expected.hidden_states[1])
        assert torch.equal(view.states[2], expected.hidden_states[4])
        assert torch.equal(view.states[3], expected.hidden_states[5])
        assert torch.equal(original.get_submodule(NORMS[model_type])(view.states[4]), expected.hidden_states[6])
        assert (view.logits is not None) == predictions
    assert torch.equal(Resident(decoder, KEPT, (), predictions=True, device=CPU).view(batch).logits, expected.logits)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_nobody_asks_for_is_not_run(model_type):
    decoder = decoder_of(pair(model_type)[0])
    heads = []
    handle = decoder.model.get_output_embeddings().register_forward_hook(lambda *_: heads.append(1))
    teacher = Resident(decoder, KEPT, (1, 2), predictions=False, device=CPU)
    with counting(decoder.blocks) as counts:
        teacher.view(inputs())
    handle.remove()
    assert counts == [1, 1, 1, 1, 0, 0]
    assert not heads
    whole = Resident(decoder, KEPT, (), predictions=True, device=CPU).cost(12)
    assert 0 < teacher.cost(12).linear < whole.linear * 4 / 6


def test_where_nothing_is_asked_nothing_is_run():
    decoder = decoder_of(pair("llama")[0])
    teacher = Resident(decoder, KEPT, (), predictions=False, device=CPU)
    with counting(decoder.blocks) as counts:
        view = teacher.view(inputs())
    assert (view.logits, view.states, view.prefix) == (None, {}, None)
    assert counts == [0] * DEPTH
    assert teacher.cost(12) == Cost()
    alone = Resident(decoder, KEPT, (), predictions=False, shared=2, device=CPU).view(inputs())
    assert alone.prefix is not None


def test_somebody_elses_model_is_left_as_it_was():
    original, _ = pair("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    original.train()
    original.transformer.h[0].eval()
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    teacher = Resident(decoder_of(original), KEPT, (2,), predictions=True, device=CPU)
    one, two = teacher.view(inputs()), teacher.view(inputs())
    assert torch.equal(one.logits, two.logits)
    assert not one.logits.requires_grad
    assert not one.states[2].requires_grad
    assert original.training
    assert not original.transformer.h[0].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())


def trained_from(pruned, lowest):
    """Train blocks from `lowest` on; the parameters by name, as `beside` takes them."""
    decoder = decoder_of(pruned)
    pruned.requires_grad_(False)
    for block in decoder.blocks[lowest:]:
        block.requires_grad_(True)
    return decoder, dict(pruned.named_parameters())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_original_costs_what_the_pruned_model_lacks(model_type):
    original, pruned = pair(model_type)
    twin = copy.deepcopy(original)
    decoder, parameters = trained_from(pruned, 3)
    blocks = [sum(p.numel() * 4 for p in block.parameters()) for block in decoder_of(original).blocks]
    whole = sum(p.numel() * 4 for p in original.parameters())
    freed = share_tensors(decoder_of(twin), parameters, KEPT)
    assert freed == whole - blocks[2] - blocks[3] - blocks[5]
    assert share_tensors(decoder_of(twin), parameters, KEPT) == 0
    storages = {t.data_ptr(): t.numel() * 4 for model in (twin, pruned) for t in model.parameters()}
    assert sum(storages.values()) == whole + blocks[5]
    # Still the original, also when the pruned model has been trained.
    batch = inputs()
    expected = Resident(decoder_of(original), KEPT, (), predictions=True, device=CPU).view(batch).logits
    with torch.no_grad():
        for parameter in decoder.blocks[3].parameters():
            parameter.add_(1.0)
    assert torch.equal(Resident(decoder_of(twin), KEPT, (), predictions=True, device=CPU).view(batch).logits, expected)


def test_blocks_are_the_same_where_every_bit_is():
    original, pruned = pair()
    decoder, parameters = trained_from(pruned, 3)
    theirs = decoder_of(original)
    assert same_blocks(theirs, decoder, parameters, 2, KEPT) is None
    weight = pruned.model.layers[1].mlp.up_proj.weight
    kept = weight.data.clone()
    weight.data[0, 0] += 1e-6
    assert "'model.layers.1.mlp.up_proj.weight' holds other numbers" in same_blocks(
        theirs, decoder, parameters, 2, KEPT
    )
    assert same_blocks(theirs, decoder, parameters, 1, KEPT) is None
    weight.data = kept.bfloat16()
    assert "is float32 in the original and bfloat16 here" in same_blocks(theirs, decoder, parameters, 2, KEPT)
    weight.data = kept
    pruned.model.embed_tokens.weight.data[5, 0] += 1.0
    assert "embed_tokens" in same_blocks(theirs, decoder, parameters, 2, KEPT)
    pruned.model.embed_tokens.weight.requires_grad_(True)  # then nothing is frozen below, which is not asked here
    pruned.config._attn_implementation = "eager"
    assert "attention is computed as sdpa in the original and as eager" in same_blocks(
        theirs, decoder, parameters, 2, KEPT
    )


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_both_models_begin_with_is_run_once(model_type, autocast, tmp_path):
    original, pruned = pair(model_type)
    decoder, parameters = trained_from(pruned, 3)
    pruned.train()
    origin = origin_of(original, saved(original, tmp_path / "original"))
    terms = parse_losses(settings(loss="next_token=0.5,kl=1"))
    wanted = Asked((), True, "resident", True)
    found = beside(wanted, origin, decoder, parameters, frozen=3, computing=Computing(CPU, torch.float32, autocast))
    assert (found.shared, found.unshared) == (2, None)
    results = []
    for prefix in (None, Shared(2)):
        pruned.zero_grad()
        step = Step(decoder, terms, teacher=found.teacher, frozen=3, prefix=prefix)
        with counting(decoder.blocks) as counts, counting(found.teacher.decoder.blocks) as theirs:
            torch.manual_seed(0)  # dropout, in the blocks above
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                total, each = step(pruned, inputs())
        total.backward()
        assert counts == ([1, 1, 1, 1] if prefix is None else [0, 0, 1, 1])
        assert theirs == [1] * 6
        results.append((each, [p.grad.clone() for p in pruned.parameters() if p.requires_grad]))
    (one, first), (two, second) = results
    assert one == two  # to the bit: the same products were made, by one model in place of the other
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(gradient.any() for gradient in first)


def test_blocks_that_surgery_wrote_into_are_not_shared(tmp_path):
    original, pruned = pair()
    folder = saved(original, tmp_path / "original")
    decoder, parameters = trained_from(pruned, 3)
    wanted, how = Asked((), True, "resident", True), Computing(CPU, torch.float32)
    changed = origin_of(original, folder, changed=(1,))
    assert beside(wanted, changed, decoder, parameters, frozen=3, computing=how).shared == 1
    pruned.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1.0  # nobody said so
    found = beside(wanted, origin_of(original, folder), decoder, parameters, frozen=3, computing=how)
    assert found.shared == 0
    assert "up_proj" in found.unshared


def test_a_model_in_memory_is_shared_in_nothing_and_copied_only_into_another_dtype():
    original, pruned = pair()
    decoder, parameters = trained_from(pruned, 3)
    pointers = {name: p.data_ptr() for name, p in original.named_parameters()}
    wanted = Asked((), True, "resident", True)
    for dtype, same in ((torch.float32, True), (torch.float64, False)):
        found = beside(wanted, origin_of(original), decoder, parameters, frozen=3, computing=Computing(CPU, dtype))
        assert (found.teacher.decoder.model is original) == same
        assert next(found.teacher.decoder.model.parameters()).dtype == dtype
    assert {name: p.data_ptr() for name, p in original.named_parameters()} == pointers
    assert original.dtype == torch.float32
    assert all(p.requires_grad for p in original.parameters())


def stored(wanted, origin, decoder, config, rows, held_out, folder):
    return on_disk(
        wanted, origin, decoder, config, rows, held_out, folder=folder,
        computing=Computing(CPU, torch.float32), progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_predictions_on_disk_say_what_the_original_says(model_type, temperature, tmp_path):
    original, pruned = pair(model_type)
    decoder, parameters = trained_from(pruned, 0)
    samples, held_out = split_text(8, 3)
    config = settings(loss="kl=1,seam=1,hidden=0.5", temperature=temperature, top_k=VOCAB, teacher="stored")
    origin = origin_of(original)
    terms = parse_losses(config)
    positions = compared_positions(terms, origin)
    assert positions == (2, 3, 4)
    wanted = asked(config, terms, positions)
    rows = Rows.of(samples)
    on = stored(wanted, origin, decoder, config, rows, Rows.of(held_out), tmp_path)
    there = beside(wanted, origin, decoder, parameters, frozen=0, computing=Computing(CPU, torch.float32))
    # Every row was alone with others of its length when it was written, and is beside others now.
    for batch in (collate([rows[i] for i in (0, 5, 2)]), collate([rows[i] for i in (7, 1)])):
        found = []
        for teacher in (there.teacher, on.teacher):
            pruned.zero_grad()
            step = Step(decoder, terms, positions=positions, teacher=teacher, seams=origin.seams)
            total, each = step(pruned, batch)
            total.backward()
            found.append(
                (
                    {name: float(value) for name, value in each.items()},
                    torch.cat([p.grad.flatten() for p in pruned.parameters() if p.grad is not None]),
                )
            )
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)
    one, two = (Judge(held_out, teacher, batch_size=2)(pruned) for teacher in (there.judge, on.judge))
    assert one["kl"] == pytest.approx(two["kl"], rel=1e-5)
    assert one["loss"] == two["loss"] == held_out_loss(pruned, held_out, batch_size=2)


def test_fewer_tokens_on_disk_are_those_in_memory(tmp_path):
    original, pruned = pair()
    samples, held_out = split_text(4, 3)
    rows = Rows.of(samples)
    on = {}
    for teacher in ("resident", "stored"):
        config = settings(loss="kl", top_k=5, teacher=teacher)
        terms = parse_losses(config)
        decoder, parameters = trained_from(pruned, 0)
        wanted = asked(config, terms, ())
        if teacher == "stored":
            made = stored(wanted, origin_of(original), decoder, config, rows, Rows.of(held_out), tmp_path)
            assert "its 5 likeliest tokens apart" in made.notes[0]
            assert made.disk == (samples.tokens + held_out.tokens) * (8 * 5 + 4) + 8 * 7
            assert made.spent > 0
        else:
            how = Computing(CPU, torch.float32)
            made = beside(wanted, origin_of(original), decoder, parameters, frozen=0, computing=how)
        total, _ = Step(decoder, terms, teacher=made.teacher)(pruned, collate([rows[2], rows[0]]))
        on[teacher] = total.item()
    assert on["stored"] == pytest.approx(on["resident"], rel=1e-5)


def test_packed_rows_on_disk(tmp_path):
    original, pruned = pair()
    samples, held_out = split_text(8, 3)
    rows = Rows.packed(samples, 24)
    assert len(rows) < 8
    config = settings(loss="kl", top_k=VOCAB, teacher="stored")
    terms = parse_losses(config)
    decoder, parameters = trained_from(pruned, 0)
    wanted = asked(config, terms, ())
    on = stored(wanted, origin_of(original), decoder, config, rows, Rows.of(held_out), tmp_path)
    there = beside(wanted, origin_of(original), decoder, parameters, frozen=0, computing=Computing(CPU, torch.float32))
    batch = collate([rows[1], rows[0]])
    one, two = (Step(decoder, terms, teacher=t)(pruned, batch)[0].item() for t in (on.teacher, there.teacher))
    assert one == pytest.approx(two, rel=1e-5)


def test_a_store_goes_on_where_it_stopped_and_is_read_only_for_what_made_it(tmp_path, monkeypatch):
    original, pruned = pair()
    decoder, _ = trained_from(pruned, 0)
    samples, held_out = split_text(6, 3)
    config = settings(loss="kl", top_k=4, teacher="stored", micro_batch_size=2)
    wanted = asked(config, parse_losses(config), ())
    seen = []
    plain = Resident.view

    def view(self, batch):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(batch["rows"].tolist())
        return plain(self, batch)

    def run(origin, **changes):
        rows = Rows.of(samples)
        return stored(wanted, origin, decoder, settings(**vars(config) | changes), rows, Rows.of(held_out), tmp_path)

    monkeypatch.setattr(Resident, "view", view)
    with pytest.raises(KeyboardInterrupt):
        run(origin_of(original))
    done = [row for batch in seen for row in batch]
    assert len(done) == 4
    monkeypatch.setattr(
        Resident, "view", lambda self, batch: seen.append(batch["rows"].tolist()) or plain(self, batch)
    )
    del seen[:]
    run(origin_of(original))
    left = [row for batch in seen for row in batch]
    assert sorted(left) == sorted([*({*range(6)} - {*done}), 0, 1, 2])  # and all of the held-out text
    del seen[:]
    run(origin_of(None))  # nothing is left to ask it
    run(origin_of(None), learning_rate=0.5)
    assert not seen
    folders = {path.name for path in tmp_path.iterdir()}
    assert len(folders) == 2
    run(origin_of(original, key="other weights"))
    assert sum(map(len, seen)) == 9
    assert not folders & {path.name for path in tmp_path.iterdir()}  # the old ones are gone


def test_disk_is_bounded_and_its_use_is_said_before(tmp_path, caplog):
    original, pruned = pair()
    decoder, _ = trained_from(pruned, 0)
    samples, held_out = split_text(6, 3)
    config = settings(loss="kl", top_k=4, teacher="stored", store_budget="1KB")
    wanted = asked(config, parse_losses(config), ())
    with caplog.at_level(logging.INFO), pytest.raises(ConfigError, match=r"store_budget.*lower healing.top_k \(4\)"):
        stored(wanted, origin_of(original), decoder, config, Rows.of(samples), Rows.of(held_out), tmp_path / "teacher")
    assert "36 bytes a token" in caplog.text
    assert not (tmp_path / "teacher").exists()


def test_losses_that_cannot_work_are_refused_early():
    original, _ = pair()
    there, away = origin_of(original), Origin(KEPT, DEPTH)
    uncut = Origin(tuple(range(DEPTH)), DEPTH, load=lambda: original)

    def check(loss, origin, lowest=0):
        terms = parse_losses(settings(loss=loss))
        check_losses(terms, compared_positions(terms, origin), lowest, origin)

    for loss in ("kl", "seam", "hidden"):
        with pytest.raises(ConfigError, match=rf"loss '{loss}' compares with the original, which is not at hand"):
            check(f"next_token=1,{loss}=1", away)
    for loss in ("seam", "hidden"):
        with pytest.raises(ConfigError, match=r"none of the 6 was dropped .*sliced"):
            check(loss, uncut)
    with pytest.raises(ConfigError, match=r"enters block 2, and the lowest block that is trained is 2: .* constant"):
        check("seam", there, lowest=2)
    check("seam", there, lowest=1)
    check("hidden", there, lowest=3)
    with pytest.raises(ConfigError, match="block 2, block 3, the last norm"):
        check("hidden", there, lowest=4)
    check("kl", there, lowest=4)
    check("next_token", away)
    check("kl", uncut)


def test_what_is_asked_of_the_original():
    def of(positions=(), **changes):
        config = settings(**changes)
        return asked(config, parse_losses(config), positions)

    assert of() is None
    assert of(loss="kl") == Asked((), True, "resident", True)
    assert of((2,), loss="seam") == Asked((2,), False, "resident", True)
    # For held-out figures alone it need not stay.
    assert of(stop_on="kl") == Asked((), False, "stored", False)
    assert of(teacher="nf4") == Asked((), False, "nf4", False)
    with pytest.raises(ConfigError, match="handed over in memory"):
        check_teacher(of(loss="kl", teacher="nf4"), origin_of(pair()[0]))
    with pytest.raises(ConfigError, match="not at hand"):
        check_teacher(of(stop_on="kl"), Origin(KEPT, DEPTH))


def test_another_model_is_refused(tmp_path):
    original, pruned = pair()
    decoder, parameters = trained_from(pruned, 0)
    how, wanted = Computing(CPU, torch.float32), Asked((2,), True, "resident", True)
    with pytest.raises(ConfigError, match="vocabulary of 50"):
        beside(
            wanted, origin_of(tiny_model("llama", DEPTH, vocab_size=50)), decoder, parameters, frozen=0, computing=how
        )
    with pytest.raises(ConfigError, match="64 wide, those of the pruned model 32"):
        beside(
            wanted, origin_of(tiny_model("llama", DEPTH, hidden_size=64)), decoder, parameters, frozen=0, computing=how
        )


def test_the_judge_knows_a_divergence_where_there_is_an_original():
    original, pruned = pair()
    _, held_out = split_text(8, 3)
    pruned.train()
    assert Judge(held_out)(pruned) == {"loss": held_out_loss(pruned, held_out), "kl": None}
    teacher = Resident(decoder_of(original), KEPT, (), predictions=True, device=CPU)
    found = Judge(held_out, teacher, batch_size=2)(pruned)
    kls = []
    for ids in held_out.sequences:
        with torch.no_grad():
            p, q = (m.eval()(ids[None]).logits[0, :-1].double().log_softmax(-1) for m in (original, pruned))
        kls += (p.exp() * (p - q)).sum(-1).tolist()
    assert found["kl"] == pytest.approx(sum(kls) / len(kls), rel=1e-5)
    assert Judge(held_out, teacher)(original)["kl"] == 0.0


@pytest.fixture
def in_float32(monkeypatch):
    monkeypatch.setattr(
        "hf_prune.healing.job.probe", lambda device, parameters: Throughput(flops=1e12, dtype="float32")
    )


def healed(tmp_path, name, original, pruned, **changes):
    pruned_folder, folder = tmp_path / "pruned", tmp_path / "original"
    if not folder.exists():
        saved(original, folder)
        saved(pruned, pruned_folder)
    samples, held_out = split_text()
    config = settings(**{"loss": "kl", "steps": 12, "dropout": 0.0, "eval_steps": 6, "learning_rate": 0.05, **changes})
    origin = origin_of(original, folder)
    return heal(
        pruned_folder, samples, held_out, config, run_folder=tmp_path / name, base_model="o/b", progress=False,
        origin=origin,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("in_float32")
def test_healing_against_the_original_comes_closer_to_it_whatever_it_is_kept_as(tmp_path):
    original, pruned = pair()
    curves: dict[str, list[float]] = {}
    for name, changes in {
        "resident": {},
        "stored": {"teacher": "stored", "top_k": VOCAB},
        "few": {"teacher": "stored", "top_k": 8},
    }.items():
        record = healed(tmp_path, name, original, pruned, target="mlp", **changes).record
        curves[name] = [point.kl for point in record.curve]
        assert curves[name][-1] < 0.95 * curves[name][0], name
        assert (record.reused is not None) == (name != "resident")
    assert curves["stored"] == pytest.approx(curves["resident"], rel=1e-3)
    assert all(few < full for few, full in zip(curves["few"], curves["resident"], strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("loss", ["seam", "next_token=0.1,hidden=1"])
def test_healing_the_stream_brings_it_closer(loss, tmp_path):
    original, pruned = pair()
    record = healed(tmp_path, "run", original, pruned, target="mlp", loss=loss).record
    kls = [point.kl for point in record.curve]
    assert kls[-1] < 0.95 * kls[0]


@pytest.mark.usefixtures("in_float32")
def test_the_shared_prefix_changes_nothing_but_the_work(tmp_path):
    original, pruned = pair()
    records, models = {}, {}
    for prefix in (None, "recompute"):
        result = healed(tmp_path, str(prefix), original, pruned, target="last", last_blocks=1, prefix=prefix)
        records[prefix], models[prefix] = result.record, result.model
    assert "first 2 of 4 blocks for both models" in records[None].reused
    assert records["recompute"].reused is None
    assert [point.loss for point in records[None].curve] == [point.loss for point in records["recompute"].curve]
    assert records[None].curve[-1].flops < records["recompute"].curve[-1].flops
    one, two = (models[prefix].state_dict() for prefix in (None, "recompute"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.slow
@pytest.mark.usefixtures("in_float32")
def test_an_original_in_four_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    original, pruned = pair(**shape)
    full = healed(tmp_path, "full", original, pruned, target="last", last_blocks=1).record
    for quantize, shared in (("none", False), ("nf4", True)):
        # One pass over the text, in which storing the prefix would not pay.
        changes = {"teacher": "nf4", "quantize": quantize, "target": "last", "last_blocks": 1, "steps": 4}
        record = healed(tmp_path, quantize, original, pruned, **changes).record
        kls = [point.kl for point in record.curve]
        assert kls[0] != full.curve[0].kl
        assert kls[-1] < kls[0]
        assert (record.reused is not None) == shared
        assert any("each ran the frozen first blocks" in note for note in record.warnings) != shared


def test_the_original_is_let_go_before_the_pruned_model_is_loaded(tmp_path, monkeypatch):
    import gc
    import weakref

    original, pruned = pair()
    decoder, _ = trained_from(pruned, 0)
    samples, held_out = split_text(4, 3)
    config = settings(loss="kl", teacher="stored")
    models = []
    plain = loading.load_model

    def load(*given, **named):
        models.append(weakref.ref(model := plain(*given, **named)))
        return model

    monkeypatch.setattr(loading, "load_model", load)
    wanted = asked(config, parse_losses(config), ())
    origin = origin_of(None, saved(original, tmp_path / "original"))
    found = stored(wanted, origin, decoder, config, Rows.of(samples), Rows.of(held_out), tmp_path / "teacher")
    gc.collect()
    assert [model() for model in models] == [None]
    assert found.teacher is not None


@pytest.mark.usefixtures("in_float32")
def test_sharing_what_is_not_the_same_is_refused(tmp_path):
    original, pruned = pair()
    pruned.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1.0
    with pytest.raises(ConfigError, match=r"prefix='share'.*'model.layers.0.mlp.up_proj.weight' holds other numbers"):
        healed(tmp_path, "run", original, pruned, target="last", last_blocks=1, prefix="share")
