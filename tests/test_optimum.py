"""`optimum-cli prune`: the job of `hf-prune run` under another name."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.making import base_folder

# `optimum.commands` alone is there wherever this package is installed: its own file lies in it.
pytest.importorskip("optimum.commands.optimum_cli", reason="needs the extra `optimum`")

REGISTER = Path(__file__).parent.parent / "hf_prune" / "optimum_cli" / "register_hf_prune.py"
MAIN = "import sys; from optimum.commands.optimum_cli import main; sys.argv[0] = 'optimum-cli'; main()"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file where the wheel puts it, or an empty one where the installed package has put it already.

    `optimum` has no `__init__.py`, so that the folder is one place more.
    """
    folder = tmp_path_factory.mktemp("site")
    if importlib.util.find_spec("optimum.commands.register.register_hf_prune") is not None:
        return folder
    home = folder / "optimum" / "commands" / "register"
    home.mkdir(parents=True)
    shutil.copyfile(REGISTER, home / REGISTER.name)
    return folder


def optimum_cli(place: Path, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_optimum_lists_it_and_our_options_are_shown(place: Path, tmp_path: Path) -> None:
    listed = optimum_cli(place, "--help", cwd=tmp_path)
    assert listed.returncode == 0 and "prune" in listed.stdout and "(hf-prune run)" in " ".join(listed.stdout.split())
    shown = optimum_cli(place, "prune", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "Usage: hf-prune run" in shown.stdout and "--drop-layers" in shown.stdout and "--heal-rank" in shown.stdout


def test_exit_codes_pass_through(place: Path, tmp_path: Path) -> None:
    wrong = optimum_cli(place, "prune", "--no-such-option", cwd=tmp_path)
    assert wrong.returncode == 2 and "No such option" in wrong.stderr
    refused = optimum_cli(place, "prune", "nowhere", "--drop-layers", "2", "--method", "uidle", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: unknown method 'uidle'") and "Traceback" not in refused.stderr


def test_the_file_is_light(place: Path) -> None:
    code = (
        "import sys, optimum.commands.register.register_hf_prune as register; "
        "assert register.REGISTER_COMMANDS == [register.PruneCommand]; "
        "sys.exit(str({'torch', 'transformers', 'typer', 'hf_prune'} & set(sys.modules) or ''))"
    )
    environment = os.environ | {"PYTHONPATH": str(place)}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert child.stderr.strip() == ""


@pytest.mark.slow
def test_a_model_is_pruned(place: Path, tmp_path: Path) -> None:
    base_folder(tmp_path / "tiny-base", depth=4)
    ran = optimum_cli(
        place, "prune", "--layers", "1-2", tmp_path / "tiny-base", "--output", "out", "--no-evaluate", cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert "drop layers 1–2 (2 of 4, counted from 0)" in ran.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file() and (tmp_path / "out" / "README.md").is_file()
