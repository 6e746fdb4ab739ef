"""Run by `test_gpu` in a process of its own: the real `spaces` package, where its scheduler and its GPU are played.

This machine has neither: the scheduler is a few answers over HTTP, and nothing is moved to a GPU.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ASKED: list[str] = []


class Scheduler(BaseHTTPRequestHandler):
    """Grants every wish for a GPU, always the same one."""

    def do_POST(self) -> None:
        ASKED.append(self.path)
        granted = {"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "a"}
        body = json.dumps(granted if self.path.startswith("/schedule") else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Scheduler)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}"}

# Without torch, `spaces` leaves out all that it does to tensors, which needs a build of torch for GPUs.
sys.modules["torch"] = None  # type: ignore[assignment]

from hf_prune.space import gpu  # noqa: E402

del sys.modules["torch"]
assert gpu.ZERO and "spaces" in sys.modules

from spaces.zero import client  # noqa: E402

from hf_prune.errors import ConfigError  # noqa: E402
from hf_prune.space.frames import Frame  # noqa: E402
from hf_prune.space.pair import Visitor  # noqa: E402

client.utils.self_cgroup_device_path = lambda: "/"
HERE = os.getpid()
LOADED: list[str] = []


@gpu.gpu(lambda name, visitor: 30 + len(name))
def answer(name: str, visitor: Visitor) -> Iterator[Frame]:
    """Yield frames as comparing does; keeps what it loaded, as the cache does."""
    LOADED.append(name)
    if name == "bad":
        raise ConfigError(f"'bad' is none, asked by {visitor.name}")
    for number in range(5000 if name == "long" else 3):
        yield Frame("writing", f"{os.getpid()} {len(LOADED)} {number}")
        time.sleep(0.001 if name == "long" else 0)


def tell(*words: object) -> None:
    """A line for `test_gpu`."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def words(name: str) -> list[list[str]]:
    return [frame.status.split() for frame in answer(name, Visitor(name="ann"))]


first, again = words("one"), words("two")
worker = first[0][0]
tell("forked", worker != str(HERE), [number for _, _, number in first], LOADED == [])
tell("same worker", again[0] == [worker, "2", "0"])
try:
    words("bad")
except ConfigError as error:
    tell("error", error)
stream = answer("long", Visitor())
next(stream)
started = time.monotonic()
stream.close()
tell("closed", time.monotonic() - started < 3)
tell("after", len(words("x")) == 3)
tell("scheduled", [path.partition("?")[0] for path in ASKED].count("/schedule"), "durationSeconds=" in ASKED[0])

from hf_prune.space import comparing, cutting, pairs  # noqa: E402
from hf_prune.space.cache import models  # noqa: E402
from hf_prune.space.frames import Sampling  # noqa: E402

pair, few = pairs.find("demo", Visitor()), Sampling(max_new_tokens=4)
*_, last = comparing.compare("demo", "The sea", few, Visitor())
tell("compared", last.stage, bool(last.original), last.original_cost is not None, models().bytes)
*_, last = cutting.compare_cut(pair, "uidl", 3, "The sea", few, Visitor())
tell("cut", last.stage, last.pruned_cost is not None, models().bytes)
stream = comparing.compare("demo", "The sea", Sampling(max_new_tokens=500), Visitor())
for frame in stream:
    if frame.pruned:
        break
stream.close()
tell("left", frame.stage)
