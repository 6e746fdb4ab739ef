"""A process that ends while models are at work ends like any other."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading
from hf_prune.space import comparing
from hf_prune.space.frames import Sampling
from hf_prune.space.pair import Visitor

def visit(stage):
    for frame in comparing.compare("demo", "The old man", Sampling(1.0, 0.95, 300), Visitor()):
        if frame.stage == stage and (frame.pruned or stage == "loading"):
            yield

stream = visit(sys.argv[1])
next(stream)
if sys.argv[2] == "at it":
    threading.Thread(target=lambda: next(stream, None), daemon=True).start()
sys.exit(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "reader"),
    [("loading", "at it"), ("writing", "waits"), ("writing", "at it"), ("comparing", "at it"), ("timing", "at it")],
)
def test_the_process_ends_in_the_middle(stage: str, reader: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, stage, reader], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 3, ran.stderr[-2000:]
    assert "terminate" not in ran.stderr
