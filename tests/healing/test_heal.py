import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_prune import extras
from hf_prune.errors import CheckpointError, ConfigError, DataError, MeasureError, MissingExtraError
from hf_prune.healing import heal, held_out_loss, merge_loss_share, planned_steps, set_adapter_base
from hf_prune.healing.checkpoint import fingerprint, quiet_peft
from hf_prune.healing.rows import Rows
from hf_prune.records import Healing, HeldOutLoss
from hf_prune.samples import Samples
from tests.healing.support import pruned_checkpoint, settings, split_text
from tests.tiny import tokens

pytestmark = pytest.mark.usefixtures("fixed_speed")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    return pruned_checkpoint(tmp_path_factory.mktemp("pruned"))


def healed(pruned, run, config=None, *, data=None, **kwargs):
    samples, held_out = data or split_text()
    return heal(
        pruned,
        samples,
        held_out,
        config or settings(),
        run_folder=run,
        base_model="org/base",
        progress=False,
        **kwargs,
    )


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits.float()


def test_healing_lowers_the_loss_and_touches_only_the_mlp(pruned, tmp_path):
    result = healed(pruned, tmp_path / "run", original_loss=1.5)
    record = result.record
    losses = record.held_out
    assert losses.merged < losses.pruned - 0.08
    assert losses.adapter == pytest.approx(losses.merged, abs=0.02)
    assert (losses.quantized, losses.adapter_quantized, losses.original) == (None, None, 1.5)
    assert record.merge_loss_share == (losses.merged - losses.adapter) / (losses.pruned - losses.adapter)

    before = AutoModelForCausalLM.from_pretrained(pruned)
    assert type(result.model) is type(before)
    assert result.model.state_dict().keys() == before.state_dict().keys()
    for name, tensor in result.model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before.state_dict()[name]) != ("mlp" in name), name
    assert losses.pruned == held_out_loss(before, split_text()[1], batch_size=2)
    assert losses.merged == held_out_loss(result.model, split_text()[1], batch_size=2)


def test_the_record_tells_what_was_done(pruned, tmp_path):
    samples, held_out = split_text()
    config = settings()
    result = healed(pruned, tmp_path / "run", config)
    record = result.record
    assert record.target_modules == ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")
    assert record.trained_parameters == 2 * 3 * 4 * (32 + 48)
    assert (record.steps, record.quantization, record.output) == (12, None, "merged")
    # 20 sequences are 5 steps of 4: twelve steps are two whole passes and two steps
    assert 2 * samples.tokens < record.tokens < 3 * samples.tokens
    assert record.settings["epochs"] == pytest.approx(2.4)
    assert record.settings["rank"] == 4
    assert record.settings["compute_dtype"] == "bfloat16"
    assert record.held_out.tokens == held_out.tokens - 6
    assert (record.data, record.held_out_data) == (samples.use, held_out.use)
    assert any("was read 2.4 times" in warning for warning in record.warnings)
    assert record.seconds > 0
    assert Healing.load(record.save(tmp_path)) == record
    assert str(tmp_path) not in json.dumps(record.to_dict())


def test_same_seed_same_model_other_seed_another(pruned, tmp_path):
    one = healed(pruned, tmp_path / "1", settings(steps=3)).model.state_dict()
    two = healed(pruned, tmp_path / "2", settings(steps=3)).model.state_dict()
    other = healed(pruned, tmp_path / "3", settings(steps=3, seed=1)).model.state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert not torch.equal(one[name], other[name])


def test_a_finished_run_is_not_trained_again(pruned, tmp_path):
    first = healed(pruned, tmp_path / "run")
    again = healed(pruned, tmp_path / "run")
    assert again.record == first.record
    assert all(torch.equal(t, again.model.state_dict()[n]) for n, t in first.model.state_dict().items())


def test_state_of_other_inputs_is_thrown_away(pruned, tmp_path, caplog):
    healed(pruned, tmp_path / "run", settings(steps=2))
    fresh = healed(pruned, tmp_path / "fresh", settings(steps=3))
    other = healed(pruned, tmp_path / "run", settings(steps=3))
    assert "throwing away the healing state of other inputs (steps: 2 -> 3)" in caplog.text
    assert all(torch.equal(t, other.model.state_dict()[n]) for n, t in fresh.model.state_dict().items())
    healed(pruned, tmp_path / "run", settings(steps=3), resume=False)
    assert "throwing away the healing state of an earlier run" in caplog.text


def test_fingerprint_tells_cuts_of_one_model_apart(tmp_path):
    one = pruned_checkpoint(tmp_path / "one")
    same = pruned_checkpoint(tmp_path / "same")
    assert fingerprint(one) == fingerprint(same)
    model = AutoModelForCausalLM.from_pretrained(one)
    model.model.layers = torch.nn.ModuleList(list(model.model.layers)[::-1])
    model.save_pretrained(tmp_path / "other")
    assert (one / "config.json").read_bytes() == (tmp_path / "other" / "config.json").read_bytes()
    assert fingerprint(one) != fingerprint(tmp_path / "other")


def test_output_adapter(pruned, tmp_path):
    from peft import PeftModel

    result = healed(pruned, tmp_path / "run", settings(output="adapter"))
    assert isinstance(result.model, PeftModel)
    assert sorted(p.name for p in result.adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((result.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert config["inference_mode"] is True
    assert str(tmp_path) not in json.dumps(config)
    assert str(pruned) not in json.dumps(config)
    base = AutoModelForCausalLM.from_pretrained(pruned)
    before = logits(base)
    with quiet_peft():
        loaded = PeftModel.from_pretrained(base, result.adapter)
    assert torch.equal(logits(loaded), logits(result.model))
    assert not torch.equal(logits(loaded), before)

    set_adapter_base(result.adapter, "me/pruned")
    changed = json.loads((result.adapter / "adapter_config.json").read_text())
    assert changed == config | {"base_model_name_or_path": "me/pruned"}


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "phi3", "gpt_neox"])
def test_other_families(model_type, tmp_path):
    folder = pruned_checkpoint(tmp_path / "pruned", model_type)
    result = healed(folder, tmp_path / "run")
    assert result.record.held_out.merged < result.record.held_out.pruned
    before = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    changed = {n for n, t in result.model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert not [name for name in changed if "attn" in name or "attention" in name]


def test_mixtral_heals_attention_and_says_so(tmp_path):
    longer = settings(learning_rate=0.03, steps=30)  # attention alone learns slowly
    result = healed(pruned_checkpoint(tmp_path / "pruned", "mixtral"), tmp_path / "run", longer)
    assert result.record.target_modules == tuple(f"self_attn.{n}_proj" for n in "koqv")
    assert any("trains attention instead" in warning for warning in result.record.warnings)
    assert result.record.held_out.merged < result.record.held_out.pruned


def test_without_bitsandbytes_auto_is_lora_and_says_so(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "available", lambda module: module != "bitsandbytes")
    result = healed(pruned, tmp_path / "run", settings(quantize="auto"))
    assert result.record.quantization is None
    assert result.record.held_out.quantized is None
    assert result.record.warnings[0].startswith(
        "bitsandbytes is not installed: healing trained LoRA on the unquantized"
    )


@pytest.mark.parametrize(("module", "quantize"), [("peft", "none"), ("accelerate", "none"), ("bitsandbytes", "nf4")])
def test_missing_packages_are_named_before_any_work(pruned, tmp_path, monkeypatch, module, quantize):
    real = extras.importlib.import_module

    def hidden(name):
        if name == module:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name)

    monkeypatch.setattr(extras.importlib, "import_module", hidden)
    with pytest.raises(MissingExtraError, match=rf"'{module}', which is not installed.*hf-prune\[heal\]"):
        healed(pruned, tmp_path / "run", settings(quantize=quantize))
    assert not (tmp_path / "run").exists()


def test_healing_that_does_not_help_says_so(pruned, tmp_path):
    result = healed(pruned, tmp_path / "run", settings(learning_rate=1e-9, warmup_steps=0, steps=2))
    losses = result.record.held_out
    assert losses.merged >= losses.pruned or losses.merged == pytest.approx(losses.pruned, abs=1e-3)
    noted = any(w.startswith("Healing did not lower the held-out loss") for w in result.record.warnings)
    assert noted is (losses.merged >= losses.pruned)
    assert noted  # bfloat16 swallows changes this small: the merged weights are the pruned ones


def test_merge_loss_is_told_with_a_way_out(pruned, tmp_path):
    # changes below the resolution of bfloat16: the adapter gains a little, the merged weights almost nothing
    result = healed(pruned, tmp_path / "run", settings(learning_rate=3e-4, steps=4))
    assert result.record.merge_loss_share > 0.05
    assert any(w.startswith("Merging lost") and "--heal-output adapter" in w for w in result.record.warnings)
    shipped = healed(pruned, tmp_path / "adapter", settings(learning_rate=3e-4, steps=4, output="adapter"))
    assert not any(w.startswith("Merging lost") for w in shipped.record.warnings)


def test_merge_loss_share():
    losses = HeldOutLoss(4.0, None, None, 3.0, 3.1, None, 10)
    assert merge_loss_share(losses) == pytest.approx(0.1)
    assert merge_loss_share(dataclasses.replace(losses, adapter=4.0)) is None


def test_planned_steps():
    rows = Rows.of(split_text()[0])
    mean = rows.tokens / 20
    assert planned_steps(settings(steps=100, tokens=round(4 * mean * 7.5)), rows) == 7
    assert planned_steps(settings(steps=5, tokens=10**9), rows) == 5
    assert planned_steps(settings(tokens=1), rows) == 1


def test_fewer_sequences_than_a_batch(pruned, tmp_path):
    result = healed(pruned, tmp_path / "run", settings(steps=3), data=split_text(train=3))
    assert result.record.steps == 3
    assert any("holds 3 sequences, fewer than one batch of 4" in w for w in result.record.warnings)


def test_unusable_text_is_refused_before_loading(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_prune.healing.checkpoint.load", lambda *a, **k: pytest.fail("loaded"))
    samples, held_out = split_text()

    def refused(message, samples=samples, held_out=held_out, **changes):
        with pytest.raises(DataError, match=message):
            healed(pruned, tmp_path / "run", settings(**changes), data=(samples, held_out))

    refused("there is no healing text", samples=Samples((), samples.use))
    refused("there is no held-out text", held_out=Samples((), samples.use))
    refused("healing sequence 0 has 1 tokens", samples=Samples((torch.tensor([5]),), samples.use))
    refused("expected from 2 to max_length=6", max_length=6)
    refused("token id 96; the model knows ids below 96", samples=Samples((torch.tensor([5, 96]),), samples.use))
    silent = tuple(torch.arange(len(ids)) == 0 for ids in samples.sequences)
    refused(r"healing sequence 0 has no token to be learned", samples=dataclasses.replace(samples, learned=silent))
    silent = tuple(torch.ones(len(ids), dtype=torch.bool) for ids in held_out.sequences[1:])
    silent = (torch.arange(len(held_out.sequences[0])) == 0, *silent)
    refused(r"held-out sequence 0 has no token", held_out=dataclasses.replace(held_out, learned=silent))
    shared = Samples((*held_out.sequences[:5], samples.sequences[0]), held_out.use)
    refused("1 of 6 held-out sequences are in the healing text too", held_out=shared)
    with pytest.raises(ConfigError, match=r"\['rank'\] are None.*resolve"):
        healed(pruned, tmp_path / "run", settings(rank=None))
    with pytest.raises(CheckpointError, match="no config.json"):
        healed(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_quantized_checkpoint_is_refused(pruned, tmp_path):
    config = json.loads((pruned / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="quant_method 'bitsandbytes'.*unquantized base"):
        healed(tmp_path, tmp_path / "run")


def test_a_damaged_checkpoint_is_refused(pruned, tmp_path):
    config = json.loads((pruned / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes((pruned / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="does not load whole: .*model.layers.2"):
        healed(tmp_path, tmp_path / "run")
    (tmp_path / "model.safetensors").write_bytes((pruned / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="model.safetensors cannot be read"):
        healed(tmp_path, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(pruned_checkpoint(tmp_path / "pruned"))
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(MeasureError, match="before its first step: the held-out loss is nan.*check the pruned"):
        healed(tmp_path / "broken", tmp_path / "run")


def test_checkpoints_ask_nobody_and_leave_nothing_else(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr("peft.utils.other.check_file_exists_on_hf_hub", lambda *a, **k: pytest.fail("asked the Hub"))
    monkeypatch.chdir(tmp_path)
    healed(pruned, tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["adapter", "checkpoints", "inputs.json"]
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["checkpoint-10", "checkpoint-12"]
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.float32}


@pytest.mark.parametrize("count", [21, 20, 16, 3])
def test_the_budget_is_what_is_read_also_where_the_last_step_of_a_pass_is_smaller(pruned, tmp_path, count):
    samples, held_out = split_text(21, 6)
    same = tuple(torch.arange(3 + at, 11 + at) for at in range(count))  # each of 8 tokens
    samples = Samples(same, dataclasses.replace(samples.use, samples=count, tokens=8 * count))
    # passes of 21, and of 20, are steps of 16 and of 4: ten rows on average
    config = settings(batch_size=16, micro_batch_size=4, steps=1000, tokens=8 * 60, eval_steps=100, save_steps=100)
    record = healed(pruned, tmp_path / "run", config, data=(samples, held_out)).record
    assert record.tokens == pytest.approx(8 * 60, abs=8 * 16)
    assert record.steps == planned_steps(config, Rows.of(samples)) == {21: 6, 20: 6, 16: 3, 3: 20}[count]
