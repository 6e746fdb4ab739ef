"""What README and help texts tell people to type is what the program takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from hf_prune import PrunerConfig
from hf_prune.cli.app import app
from tests import comparison_list, healing_list, method_list
from tests.cli.support import call, fast, parses, planted, recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands
BELOW = {(name, below): part for name, c in COMMANDS.items() for below, part in getattr(c, "commands", {}).items()}


def blocks(language: str) -> list[str]:
    """The fenced blocks of README in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def plain(line: str) -> str:
    """A line that torchrun starts as one that is started without."""
    return re.sub(r"^torchrun --nproc-per-node \d+ -m hf_prune\.cli ", "hf-prune ", line)


LINES = [
    plain(line) for block in blocks("bash") for line in block.splitlines() if line.startswith(("hf-prune ", "tor"))
]
# Of torchrun, cp and the benchmarks.
OTHERS = {"--help", "--nproc-per-node", "--reflink", "--scratch", "--mergekit"}
INLINE = [code for code in re.findall(r"`(hf-prune [^`]+)`", README) if len(shlex.split(code)) > 1]


def test_the_readme_shows_every_command() -> None:
    assert {parses(line) for line in [*LINES, *INLINE]} == set(COMMANDS)


@pytest.mark.parametrize("line", [*LINES, *INLINE])
def test_commands_of_the_readme(line: str) -> None:
    parses(line)


def test_the_readme_lists_every_method() -> None:
    found = re.search(r"<!-- methods -->\n(.*?)\n<!-- /methods -->", README, re.DOTALL)
    assert found is not None, "expected the table between <!-- methods --> and <!-- /methods -->"
    assert found[1] == method_list.render(), "make it anew: python -m tests.method_list"


def test_the_readme_lists_every_way_of_healing() -> None:
    found = re.search(r"<!-- healing -->\n(.*?)\n<!-- /healing -->", README, re.DOTALL)
    assert found is not None, "expected the tables between <!-- healing --> and <!-- /healing -->"
    assert found[1] == healing_list.render(), "make them anew: python -m tests.healing_list"


def test_table_of_the_comparison() -> None:
    found = re.search(r"<!-- comparison -->\n(.*?)\n<!-- /comparison -->", README, re.DOTALL)
    assert found is not None, "expected the table between <!-- comparison --> and <!-- /comparison -->"
    assert found[1] == comparison_list.render(), "make it anew: python -m tests.comparison_list"


def test_flags_that_the_readme_names() -> None:
    commands = [*COMMANDS.values(), *BELOW.values()]
    known = {name for command in commands for option in command.params for name in option.opts}
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README.replace("`", " ")))
    assert flags and flags <= known | OTHERS, flags - known


@pytest.mark.parametrize("words", [*((name,) for name in COMMANDS), *BELOW], ids=" ".join)
def test_help_has_examples_that_work(words: tuple[str, ...]) -> None:
    shown = call(*words, "--help")
    assert shown.code == 0
    examples = [plain(line.strip()) for line in shown.out.partition("Examples:")[2].splitlines() if line.strip()]
    assert examples, shown.out
    assert {parses(line) for line in examples} == {words[0]}
    assert all(line.startswith(" ".join(("hf-prune", *words))) for line in examples)


def test_example_of_the_whole_program() -> None:
    shown = " ".join(call("--help").out.partition("Example: ")[2].split())
    assert parses(shown) == "run"


def test_a_line_that_does_not_fit_is_caught() -> None:
    for line in (
        "hf-prune run org/model --drop-layer 8",
        "hf-prune shrink org/model",
        "hf-prune push out",
        "hf-prune space deploy",
        "hf-prune space close me/my-space",
        "hf-prune space deploy me/my-space --hardwear t4-small",
    ):
        with pytest.raises(AssertionError, match="hf-prune"):
            parses(line)


def test_python_of_the_readme(hub, hub_token, new_repo_id, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word, but for the two repos and a recipe that takes seconds."""
    (snippet,) = (block for block in blocks("python") if "Pruner.from_pretrained" in block)
    source, target = new_repo_id(), new_repo_id()
    hub.add_repo(source, planted(tmp_path / "base", (3, 4), depth=12))
    assert "org/model" in snippet and "me/model-pruned" in snippet
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_prune.PrunerConfig", recipe, raising=False)
    fast(monkeypatch)
    names: dict = {}
    exec(snippet.replace("org/model", source).replace("me/model-pruned", target), names)
    assert names["scores"].model.id == source and len(names["plan"].dropped) == 8
    assert [m.label for m in names["report"].models] == ["original", "pruned", "healed"]
    assert PrunerConfig.from_pretrained(target) == PrunerConfig.from_pretrained("out")
    assert len(names["prune_layers"](names["pruner"].model, [0]).model.layers) == 3
