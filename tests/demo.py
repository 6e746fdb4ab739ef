"""`make demo`: the whole job on the embedded model, pushed to a loopback Hub and loaded from there.

Run as `python -m tests.demo --output demo-output`. The Hub is the tests' own; everything else is what users run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .hub.server import LoopbackHub

REPO = "demo/gutenberg-llama-12l-pruned"
TOKEN = "demo-token"

_LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

repo = sys.argv[1]
model, info = AutoModelForCausalLM.from_pretrained(repo, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(repo)
wrong = {name: keys for name, keys in info.items() if keys}
if wrong:
    sys.exit(f"{repo} does not load whole: {wrong}")
set_seed(0)
inputs = tokenizer(sys.argv[2], return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=40, do_sample=True, top_p=0.9, pad_token_id=0)
print(f"{model.config.num_hidden_layers} layers, {model.num_parameters():,} parameters, {model.dtype}")
print(tokenizer.decode(written[0], skip_special_tokens=True))
"""


def main() -> None:
    """Run the demo, and show that what was pushed is what stock transformers loads."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="new or empty folder")
    given = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, LoopbackHub(Path(scratch) / "hub", {TOKEN: "demo"}) as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(Path(scratch) / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        command = [sys.executable, "-m", "hf_prune.cli", "demo", "--output", str(given.output), "--push", REPO]
        subprocess.run(command, env=environment, check=True)
        load = [sys.executable, "-c", _LOAD, REPO, "It was a dark night, and the"]
        loaded = subprocess.run(load, env=environment, check=True, capture_output=True, text=True)
        commits = hub.commits(REPO)
    sys.stdout.write(f"\nLoaded {REPO} from the loopback Hub with stock transformers: {loaded.stdout}")
    sys.stdout.write(f"\nThe repo holds {len(commits)} commits. ")
    sys.stdout.write(f"The folder stays at {given.output}; read {given.output / 'README.md'}.\n")
    sys.stdout.write(f"The demo took {time.perf_counter() - started:.0f} seconds.\n")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.stderr.write(error.stderr or "")
        sys.exit(error.returncode)
