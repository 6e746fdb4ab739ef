"""The decorator for ZeroGPU: nothing anywhere else; with the real `spaces`, where it is installed, its own workers."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_prune.space import gpu

ROOT = Path(__file__).parents[2]
needs_spaces = pytest.mark.skipif(importlib.util.find_spec("spaces") is None, reason="ZeroGPU brings `spaces`")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env=dict(os.environ) | environment,
    )


def test_elsewhere_a_function_stays_as_it_is() -> None:
    def numbers():
        yield 1

    assert not gpu.ZERO
    assert gpu.gpu(lambda: 1)(numbers) is numbers


def test_elsewhere_spaces_is_not_imported() -> None:
    code = "import sys; from hf_prune.space import gpu; sys.exit('spaces' in sys.modules or 'gradio' in sys.modules)"
    assert python("-c", code).returncode == 0


@pytest.mark.parametrize("value", ["true", "1"])
def test_on_zerogpu_spaces_is_imported_before_cuda_could_start(value: str, tmp_path: Path) -> None:
    """Played: a package that tells what was imported before it."""
    (tmp_path / "spaces.py").write_text("import sys; print('torch' in sys.modules); GPU = None")
    done = python("-c", "import hf_prune.space.gpu", SPACES_ZERO_GPU=value, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 0 and done.stdout.split() == ["False"], done.stderr


@needs_spaces
@pytest.mark.slow
def test_with_the_workers_of_spaces() -> None:
    done = python("-m", "tests.space.zerogpu", HF_HUB_DISABLE_PROGRESS_BARS="1")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if not line.startswith("SPACES_ZERO_GPU_DEBUG")]
    assert told == [
        "forked True ['0', '1', '2'] True",
        "same worker True",
        "error 'bad' is none, asked by ann",
        "closed True",
        "after True",
        "scheduled 5 True",
        "compared done True True 0",
        "cut done True 0",
        "left writing",
    ]
