import pytest

from hf_prune import output
from hf_prune.licences import duties, flags
from hf_prune.output import Finished
from tests.test_cards import body, config, full, plan


def texts(inherited, repo_id=None):
    return [duty.text for duty in duties(inherited, repo_id)]


@pytest.mark.parametrize(
    "licence", ["apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "cc0-1.0", "cc-by-4.0", "mpl-2.0"]
)
def test_what_may_be_passed_on_is_not_flagged(licence):
    found = duties({"license": licence})
    assert found and found[0].text.startswith(f"{licence}: ") and flags({"license": licence}) == ()


def test_permissive_licences_ask_for_notices():
    assert "NOTICE file too" in texts({"license": "apache-2.0"})[0]
    assert texts({"license": "mit"}) == ["mit: Keep the base's copyright and licence notices with every copy."]
    assert "same licence" in texts({"license": "agpl-3.0"})[0]
    assert texts({"license": "cc0-1.0"}) == ["cc0-1.0: It asks for nothing in return."]


@pytest.mark.parametrize("licence", ["cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"])
def test_no_derivatives_forbids(licence):
    found = flags({"license": licence})
    assert found[0] == f"{licence} FORBIDS sharing changed copies, and a pruned model is one: do not push it."
    assert (f"{licence}: no commercial use." in found) == ("nc" in licence)


def test_creative_commons_parts_are_told_apart():
    assert flags({"license": "cc-by-nc-sa-4.0"}) == ("cc-by-nc-sa-4.0: no commercial use.",)
    assert "cc-by-nc-sa-4.0: pass this model on under the same licence." in texts({"license": "cc-by-nc-sa-4.0"})
    assert len(duties({"license": "cc-by-4.0"})) == 1


@pytest.mark.parametrize(
    ("inherited", "display", "notice"),
    [
        ({"license": "llama3"}, "Built with Meta Llama 3", "Meta Llama 3 Community License"),
        ({"license": "llama3.1"}, "Built with Llama", "Llama 3.1 Community License"),
        ({"license": "llama3.2"}, "Built with Llama", "Llama 3.2 Community License"),
        ({"license": "other", "license_name": "llama3.3"}, "Built with Llama", "Llama 3.3 Community License"),
        ({"license_name": "llama-4-community-license"}, "Built with Llama", "Llama 4 Community License"),
        ({"license": ["llama4"]}, "Built with Llama", "Llama 4 Community License"),
    ],
)
def test_llama_asks_for_display_notice_and_name(inherited, display, notice):
    first, name = flags(inherited, "me/small-llama")
    assert f"display '{display}'" in first and notice in first
    begins = "Llama 3" if notice.startswith("Meta") else "Llama"
    assert name.endswith(f"must begin with '{begins}'; 'small-llama' does not.")
    assert len(flags(inherited, "me/Llama-3.1-8B-pruned")) == 1
    assert flags(inherited)[1].endswith(f"must begin with '{begins}'.")


def test_llama_3_wants_the_number_in_the_name():
    assert len(flags({"license": "llama3"}, "me/Llama-2-pruned")) == 2
    assert len(flags({"license": "llama3"}, "me/llama3-pruned")) == 1


def test_llama_2_wants_a_notice_and_no_name():
    found = flags({"license": "llama2"}, "me/anything")
    assert len(found) == 1 and "LLAMA 2 Community License" in found[0]


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ("gemma", "Gemma Terms of Use found at ai.google.dev/gemma/terms"),
        ("openrail", "use restrictions must be passed on"),
        ("openrail++", "use restrictions must be passed on"),
        ("creativeml-openrail-m", "use restrictions must be passed on"),
        ("bigscience-bloom-rail-1.0", "use restrictions must be passed on"),
        ("own-licence", "not known to hf-prune; read it"),
        ("other", "not known to hf-prune; read it"),
        ("trailing", "not known to hf-prune; read it"),
    ],
)
def test_terms_are_flagged(licence, said):
    assert [said in text for text in flags({"license": licence})] == [True]


def test_no_licence_is_flagged():
    for inherited in ({}, {"license": []}, {"license_link": "LICENSE"}):
        assert "is not known: find out" in flags(inherited)[0]


def test_every_one_of_several_licences_counts_once():
    found = texts({"license": ["mit", "cc-by-nc-4.0", "mit"]})
    assert [text.partition(":")[0] for text in found] == ["mit", "cc-by-nc-4.0", "cc-by-nc-4.0"]


def test_a_name_beside_a_licence_id_does_not_hide_it():
    assert "own" not in texts({"license": "mit", "license_name": "own"})[0]


def test_hostile_names_stay_on_one_line():
    assert (
        "\n" not in texts({"license_name": "a\nb\u202e"})[0] and "\u202e" not in texts({"license_name": "a\u202e"})[0]
    )


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_push_says_what_the_licence_asks_for_before_anything_else(tmp_path, monkeypatch, caplog, dry_run):
    said = []
    for name in ("push_folder", "check_push"):
        monkeypatch.setattr(output, name, lambda *_, **__: said.append(list(caplog.messages)) or "me/base-pruned")
    made = Finished(config(), plan(), None, None, None, "---\nlicense: cc-by-nd-4.0\n---\n", (), "none")
    made.save(tmp_path)
    output.push_output(tmp_path, "me/base-pruned", private=True, dry_run=dry_run)
    forbidden = "cc-by-nd-4.0 FORBIDS sharing changed copies, and a pruned model is one: do not push it."
    assert said and all(messages[0] == forbidden for messages in said)
    assert not (tmp_path / "README.md").exists() if dry_run else forbidden in (tmp_path / "README.md").read_text()


def test_a_push_of_a_permissive_model_says_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(output, "push_folder", lambda *_, **__: None)
    Finished(config(), plan(), None, None, None, "---\nlicense: mit\n---\n", (), "none").save(tmp_path)
    output.push_output(tmp_path, "me/base-pruned", private=True, dry_run=True)
    assert caplog.messages == []


def test_the_card_lists_duties_and_warns_of_the_flagged_ones():
    text = body(full(base_card="---\nlicense: llama2\n---\n"))
    top, licence = text.partition("## Quick start")[0], text.partition("## Licence")[2]
    assert "Notice file that reads: Llama 2 is licensed" in top and "Notice file that reads" in licence
    assert "Acceptable Use Policy" in licence and "Acceptable Use Policy" not in top
    text = body(full(base_card="---\nlicense: mit\n---\n"))
    assert "mit: Keep" in text.partition("## Licence")[2] and "mit: Keep" not in text.partition("## Quick start")[0]
    assert "The base model is the work of the authors of [org/base](https://huggingface.co/org/base)" in text
