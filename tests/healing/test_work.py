"""Working state: kept for the same inputs; for others, what has changed is said."""

import dataclasses
import json

from hf_prune.healing.work import changes, open_work
from tests.healing.support import SPEED, settings

FACTS = {"pruned checkpoint": "a", "healing text": "b"}


def opened(folder, config, facts=FACTS, resume=True, speed=SPEED):
    return open_work(folder, config, facts, resume=resume, measure=lambda: speed)


def test_the_same_inputs_keep_state_and_speed(tmp_path):
    assert opened(tmp_path, settings()) == SPEED
    (tmp_path / "checkpoints").mkdir()
    assert opened(tmp_path, settings(), speed=dataclasses.replace(SPEED, flops=1.0)) == SPEED
    assert (tmp_path / "checkpoints").exists()


def test_what_has_changed_is_said_before_state_is_thrown_away(tmp_path, caplog):
    opened(tmp_path, settings(report_to=("wandb",)))
    (tmp_path / "checkpoints").mkdir()
    opened(tmp_path, settings(learning_rate=0.02, patience=3), {**FACTS, "healing text": "c"})
    said = "learning_rate: 0.01 -> 0.02; patience: unset -> 3; report_to: ['wandb'] -> []; another healing text"
    assert f"throwing away the healing state of other inputs ({said})" in caplog.text
    assert not (tmp_path / "checkpoints").exists()
    # and is the state of the new ones from now on
    caplog.clear()
    opened(tmp_path, settings(learning_rate=0.02, patience=3), {**FACTS, "healing text": "c"})
    assert not caplog.text


def test_state_of_an_earlier_version_is_thrown_away(tmp_path, caplog):
    opened(tmp_path, settings())
    state = json.loads((tmp_path / "inputs.json").read_text())
    (tmp_path / "inputs.json").write_text(json.dumps({"digest": "x", "throughput": state["throughput"]}))
    opened(tmp_path, settings())
    assert "of other inputs (of an earlier version)" in caplog.text


def test_a_setting_that_there_is_no_more(tmp_path):
    before = {"settings": {"old": 1}, "facts": {}}
    assert changes(before, {"settings": {}, "facts": {}}) == ["old: 1 -> unset"]
