import dataclasses
import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from hf_prune.card_check import Finding, check_card
from hf_prune.cli.app import app
from hf_prune.errors import ConfigError
from hf_prune.output import Finished, write_card
from tests.test_cards import config, evaluation, healing, model, plan, scores
from tests.test_cards_results import gsm8k, task, three
from tests.test_cards_slicing import config as sliced_config
from tests.test_cards_slicing import evaluation as sliced_evaluation
from tests.test_cards_slicing import layer_scores, slicing
from tests.test_cards_slicing import plan as sliced_plan

RECORDS = {
    "config": config(),
    "plan": plan(),
    "scores": scores(),
    "healing": healing(),
    "evaluation": three(task(), gsm8k()),
    "base_card": "---\nlicense: apache-2.0\n---\n",
    "base_files": (),
    "reload_level": "full",
}


def write(folder, repo_id="me/base-pruned", **changes):
    finished = Finished(**RECORDS | changes)
    finished.save(folder)
    return write_card(folder, finished, repo_id)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write(tmp_path_factory.mktemp("made"))


@pytest.fixture
def card(made, tmp_path):
    """A copy of a card with its records and pictures: drawing takes most of the time."""
    shutil.copytree(made.parent, tmp_path / "card")
    return tmp_path / "card" / made.name


def change(card, old, new):
    text = card.read_text(encoding="utf-8")
    assert old in text
    card.write_text(text.replace(old, new), encoding="utf-8")
    return check_card(card.parent)


def errors(found):
    return [finding.text for finding in found if finding.level == "error"]


def warnings(found):
    return [finding.text for finding in found if finding.level == "warning"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"repo_id": None},
        {"healing": None, "evaluation": evaluation(model("original"), model("pruned", 4.1))},
        {"scores": None, "healing": None, "evaluation": None},
        {
            "config": sliced_config(),
            "plan": sliced_plan(),
            "scores": layer_scores(),
            "healing": None,
            "evaluation": sliced_evaluation(slicing()),
        },
    ],
)
def test_what_was_written_has_no_findings(tmp_path, changes):
    assert check_card(write(tmp_path, **changes).parent) == []


def test_benchmark_results_lie_beside_the_card(card):
    path = card.parent / ".eval_results" / "hf-prune.yaml"
    assert "id: openai/gsm8k" in path.read_text()
    write(card.parent, evaluation=three(task(), gsm8k(limit=5)))
    assert not path.exists()


def test_a_wrong_figure_is_an_error(card):
    found = change(card, "| Parameters | 5,505,024", "| Parameters | 5,505,025")
    assert len(found) == 1 and found[0].level == "error"
    assert "has '| Parameters | 5,505,025 | 4,200,000" in found[0].text and "the records make" in found[0].text


def test_benchmark_results_are_held_to_the_records(card):
    path = card.parent / ".eval_results" / "hf-prune.yaml"
    path.write_text(path.read_text().replace("value: ", "value: 9"))
    assert errors(check_card(card.parent)) == [".eval_results/hf-prune.yaml is not what the records make."]
    path.unlink()
    assert errors(check_card(card.parent)) == [".eval_results/hf-prune.yaml is not what the records make."]


@pytest.mark.parametrize("value", [".nan", "1" + "0" * 400, "[1]"])
def test_a_figure_that_compares_with_nothing(card, value):
    stated = re.search(r"value: \d+\.\d+", card.read_text(encoding="utf-8"))
    assert any("The model-index says" in text for text in errors(change(card, stated[0], f"value: {value}")))


def test_a_figure_that_is_there_twice(card):
    text = card.read_text(encoding="utf-8")
    metric = re.search(r"( +)- type: perplexity\n(?:\1  .*\n)+", text)
    card.write_text(text.replace(metric[0], re.sub(r"value: .*", "value: 1.01", metric[0]) + metric[0], 1))
    assert "The model-index holds a figure twice." in errors(check_card(card.parent))


def test_other_words_are_a_warning(card):
    found = change(card, "Made with `hf-prune`.", "Made by hand.")
    assert errors(found) == [] and len(warnings(found)) == 1 and "Made by hand." in found[0].text


def test_added_and_removed_lines_are_warnings(card):
    found = change(card, "## Limits\n", "My own words.\n\n## Limits\n")
    assert errors(found) == [] and len(found) == 1
    assert found[0].text.endswith(": a line that the records don't make: 'My own words.'")
    found = change(card, "My own words.\n\n", "")
    assert found == []
    found = change(card, "- The figures are from one run with one seed.\n", "")
    assert "the records make a line that is not there: '- The figures are from one run" in warnings(found)[0]


def test_a_card_of_other_records_is_stale(card):
    Finished(**RECORDS | {"evaluation": three(task(value=0.9), gsm8k())}).save(card.parent)
    found = errors(check_card(card.parent))
    assert "The model-index says 0.6 for boolq (acc, 0-shot) on boolq; the records say 0.8." in found
    assert any("boolq (acc, 0-shot) ↑ | 0.700" in text and "0.900" in text for text in found)


def test_many_differences_are_counted(card):
    text = card.read_text(encoding="utf-8")
    front, _, rest = text.partition("# base-pruned")
    lines = [f"{line} 7" if line.startswith("|") or line.startswith("- ") else line for line in rest.splitlines()]
    card.write_text(front + "# base-pruned" + "\n".join(lines) + "\n", encoding="utf-8")
    found = check_card(card.parent)
    assert any("more places differ" in text for text in errors(found)) and len(found) <= 12


def test_another_plan_is_told(card):
    found = change(card, "Drop layers 3–5 (3 of 12, counted from 0).", "Drop layers 1–2 (2 of 12, counted from 0).")
    assert "The card does not say what the plan did: Drop layers 3–5 (3 of 12, counted from 0)." in errors(found)


def test_pictures_need_their_file_and_alt_text(card):
    (card.parent / "layers.png").unlink()
    assert errors(check_card(card.parent)) == ["The picture ./layers.png leads to no file."]
    found = change(card, "## Limits\n", "![ ](scores.png)\n\n## Limits\n")
    assert "The picture scores.png has no alt text." in errors(found)


def test_links_need_their_file_outside_of_code(card):
    found = change(
        card, "## Limits\n", "[a](missing.md) `[b](gone.md)` [c](#limits) [d](https://x.org/y)\n\n## Limits\n"
    )
    assert errors(found) == ["The link missing.md leads to no file."]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{{ title }}", "There is a piece of the template in the text: '{{ title }}'"),
        ("| x | None |", "There is the value None in the text: '| x | None |'"),
        ("loss nan.", "There is a figure that is not a number in the text: 'loss nan.'"),
    ],
)
def test_what_a_template_leaves_behind_is_an_error(card, words, said):
    assert said in errors(change(card, "## Limits\n", f"{words}\n\n## Limits\n"))
    assert errors(change(card, f"{words}\n\n## Limits\n", f"```text\n{words}\n```\n\n## Limits\n")) == []
    plain = "Non-None values, none of it, and banana.\n\nNone of them.\n\n## Limits\n"
    assert errors(change(card, f"```text\n{words}\n```\n\n## Limits\n", plain)) == []


def test_secrets_and_paths_of_machines_are_errors(card):
    token = "hf_" + "Ab1" * 12
    found = errors(change(card, "## Limits\n", f"`{token}` /home/someone/model https://x.org/home/y\n\n## Limits\n"))
    assert any("looks like a Hub token" in text for text in found) and not any(token in text for text in found)
    assert "There is a path of some machine in the card: '/home/someone/model'" in found
    assert sum("path of some machine" in text for text in found) == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("library_name: transformers\n", "", "The front matter has no 'library_name'."),
        ("base_model: org/base\n", "", "The front matter has no 'base_model'."),
        ("base_model_relation: finetune\n", "", "The front matter has no 'base_model_relation'."),
        ("value: 0.6\n", "value: 0.61\n", "The model-index says 0.61 for boolq"),
        ("name: boolq (acc, 0-shot)\n", "name: other\n", "The model-index lacks boolq (acc, 0-shot) on boolq"),
        ("name: boolq (acc, 0-shot)\n", "name: other\n", "holds other on boolq, of which the records know nothing"),
        ("license: apache-2.0\n", "license: [apache\n", "The front matter cannot be read"),
        ("model-index:\n", "model-index: 3\nx:\n", "The front matter cannot be read"),
    ],
)
def test_metadata_is_checked(card, old, new, said):
    assert any(said in text for text in errors(change(card, old, new)))


def test_a_missing_licence_is_a_warning(card):
    assert "The front matter names no licence." in warnings(change(card, "license: apache-2.0\n", ""))


def test_any_folder_of_the_hub_is_checked(tmp_path):
    (tmp_path / "README.md").write_text("# A model\n\n![](x.png)\n")
    assert errors(check_card(tmp_path)) == [
        "There is no front matter (YAML between two lines of ---) at the top.",
        "The picture x.png has no alt text.",
        "The picture x.png leads to no file.",
    ]
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags: [x]\nlibrary_name: peft\n---\n# A model\n")
    assert check_card(tmp_path) == [
        Finding("warning", "The front matter has no 'base_model'."),
        Finding("warning", "The front matter has no 'base_model_relation'."),
    ]
    (tmp_path / "README.md").write_text("---\n- a\n---\n# A model\n")
    assert errors(check_card(tmp_path)) == ["The front matter is a list; expected keys and values."]


def test_a_local_base_needs_no_base_model(tmp_path):
    local = dataclasses.replace(plan().model, id="base", revision=None)
    card = write(tmp_path, None, config=config(base_model="base", base_revision=None), plan=plan(model=local))
    assert check_card(card.parent) == []


def test_broken_records_are_an_error(card):
    path = card.parent / "pruning" / "plan.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 9'))
    assert any("The records beside the card cannot be read" in text for text in errors(check_card(card.parent)))


def test_no_card_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no README\.md"):
        check_card(tmp_path)
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        check_card(tmp_path)


def test_the_command_ends_with_1_on_errors(card):
    run = CliRunner().invoke(app, ["card", str(card.parent), "--check"])
    assert run.exit_code == 0 and "errors: 0" in run.stdout
    before = card.read_text(encoding="utf-8")
    change(card, "5,505,024", "5,505,025")
    run = CliRunner().invoke(app, ["card", str(card.parent), "--check"])
    assert run.exit_code == 1 and run.stdout.startswith("error: Line ")
    run = CliRunner().invoke(app, ["card", str(card.parent), "--check", "--json"])
    found = json.loads(run.stdout)
    assert run.exit_code == 1 and found["errors"] == 1 and found["findings"][0]["level"] == "error"
    assert card.read_text(encoding="utf-8") == before.replace("5,505,024", "5,505,025")


def test_record_of_how_the_base_was_fetched(made, tmp_path):
    path = write(tmp_path / "card", fetched="ranges")
    assert Finished.load(path.parent).fetched == "ranges" and check_card(path.parent) == []
    assert "by range, not hash" in change(path, "not hash-verified", "hash-verified")[0].text
    record = path.parent / "pruning" / "output.json"
    record.write_text(
        json.dumps({key: value for key, value in json.loads(record.read_text()).items() if key != "fetched"})
    )
    assert Finished.load(path.parent).fetched == "whole"  # as in records of older versions
    record.write_text(json.dumps(json.loads(record.read_text()) | {"fetched": 5}))
    with pytest.raises(ConfigError, match=r"output\.json\.fetched=5"):
        Finished.load(path.parent)
