"""What commands print where: results, messages, progress bars, and nothing of other libraries."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from hf_prune import cli
from hf_prune.cli.app import app
from tests.cli.support import call, done, fast, planted, recipe_file

COMMANDS = tuple(typer.main.get_command(app).commands)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fast(monkeypatch)
    monkeypatch.chdir(tmp_path)


def environment(**changes: str) -> dict[str, str]:
    """Of a user's shell: the tests' own setting about bars is taken out."""
    return {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"} | changes


def test_help_is_fast() -> None:
    code = f"""
import sys, time
started = time.process_time()
from hf_prune.cli import main
for command in ([], *([name] for name in {COMMANDS})):
    sys.argv = ["hf-prune", *command, "--help"]
    try:
        main()
    except SystemExit as done:
        assert done.code == 0
loaded = {{"torch", "transformers", "huggingface_hub", "datasets", "matplotlib", "numpy"}} & set(sys.modules)
assert not loaded, loaded
sys.stderr.write(str(time.process_time() - started))  # whatever else the machine does
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stderr) < 1.5  # of all commands together
    assert child.stdout.count("Usage: hf-prune") == len(COMMANDS) + 1


def test_plans_load_no_library(base: Path) -> None:
    """They answer at once."""
    recipe = recipe_file(Path("recipe"))
    done("measure", base, "--config", recipe, "--output", "scores")
    code = f"""
import sys
from hf_prune.cli import main
for words in (["plan", "scores", "--drop-layers", "2"], ["plan", "scores", "--config", {recipe!r}]):
    sys.argv = ["hf-prune", *words]
    try:
        main()
    except SystemExit as done:
        assert done.code == 0
assert not {{"torch", "transformers", "huggingface_hub"}} & set(sys.modules)
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout.count("✓ drop layers 3–4") == 2 and child.stderr == ""


@pytest.mark.parametrize("heal", [(), pytest.param(("--heal",), marks=pytest.mark.slow)])
def test_nothing_of_other_libraries_shows(base: Path, heal: tuple[str, ...]) -> None:
    """A real process, its error stream no terminal: our own messages and not a line more."""
    recipe = recipe_file(Path("recipe"), layers=[2])
    words = ("run", base, "--config", recipe, "--base-model", "org/base", "--no-evaluate", "--output", "out", *heal)
    child = subprocess.run(
        [sys.executable, "-m", "hf_prune.cli", *words],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    said = [line.split()[0] for line in child.stderr.splitlines()]
    assert said[:2] == ["Plan:", "Layer"] and {*said[2:]} <= {"healing:", "Warning:"} | (
        {"Healing"} if heal else set()
    )
    for foreign in ("%|", "kernels", "[transformers]", "Loading weights", "Writing model shards", "FutureWarning"):
        assert foreign not in child.stderr, child.stderr
    assert child.stdout.startswith("✓ Pruned org/base: drop layer 2 (1 of 8")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> str:
    """What a command writes to a terminal's error stream."""
    stream = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["hf-prune", *map(str, words)])
        patch.setattr(sys, "stderr", stream)
        patch.setattr(sys, "stdout", io.StringIO())
        try:
            cli.main()
        except SystemExit as ended:
            assert ended.code == 0, stream.getvalue()
    return stream.getvalue()


def test_bars_show_on_a_terminal_unless_quiet(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("run", base, "--config", recipe_file(Path("recipe")), "--heal", "--base-model", "org/base", "--output")
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    told = on_terminal(monkeypatch, *words, "one")
    for bar in ("Sampling text", "measuring", "writing", "scoring sampled from the original", "healing"):
        assert f"{bar}: " in told, told
    silent = on_terminal(monkeypatch, *words, "two", "--quiet")
    assert "%|" not in silent and "Plan" not in silent
    warnings = [line for line in silent.splitlines() if not line.startswith("Warning: ")]
    assert warnings == []


def test_bars_can_be_asked_for(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("measure", base, "--config", recipe_file(Path("recipe")), "--output")
    assert "%|" not in done(*words, "one").err
    monkeypatch.setenv("HF_PRUNE_PROGRESS", "1")
    assert "Sampling text: " in done(*words, "two").err
    assert "%|" not in done(*words, "three", "--quiet").err


def test_json_is_all_there_is_on_standard_output(base: Path) -> None:
    recipe = recipe_file(Path("recipe"))
    done("run", base, "--config", recipe, "--output", "out")
    for words in (
        ("run", base, "--config", recipe, "--output", "out"),
        ("run", base, "--config", recipe, "--output", "new", "--dry-run"),
        ("measure", base, "--config", recipe),
        ("plan", "tiny-base-scores", "--config", recipe),
        ("prune", base, "--config", recipe, "--output", "pruned"),
        ("evaluate", "out", "--original", base),
        ("card", "out"),
        ("info", base),
        ("methods",),
        ("methods", "--families"),
    ):
        assert isinstance(done(*words, "--json").json, dict), words
    failed = call("info", "nowhere/nothing", "--json")
    assert failed.out == "" and failed.failed()


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown method 'uidle'"):
        call("run", "org/model", "--method", "uidle", "--drop-layers", "2")


@pytest.mark.parametrize(("words", "hint"), [(("run", "m"), True), (("evaluate", "d"), False)])
def test_ctrl_c(words: tuple[str, str], hint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_prune.cli.running.make_config", interrupt)
    monkeypatch.setattr("hf_prune.cli.evaluating.evaluation_config", interrupt)
    called = call(*words)
    assert called.code == 130 and called.out == ""
    go_on = " Finished stages are kept; run the same command again to go on."
    assert called.err == f"Interrupted.{go_on if hint else ''}\n"
