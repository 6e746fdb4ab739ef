"""Whose page a request comes from."""

import pytest

from hf_prune.space import origins, settings
from hf_prune.space.settings import Settings


@pytest.mark.parametrize(
    ("local", "headers", "own"),
    [
        (True, {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, True),
        (True, {"host": "localhost:7860", "origin": "http://localhost:7860"}, True),
        (True, {"host": "[::1]:7860", "origin": "http://[::1]:7860"}, True),
        (True, {"host": "127.0.0.1:7860"}, True),
        (True, {"host": "127.0.0.1:7860", "x-forwarded-for": "10.0.0.7"}, False),
        (True, {"host": "localhost:7860", "origin": "http://localhost:7860", "forwarded": "for=10.0.0.7"}, False),
        (False, {"host": "me-space.hf.space", "x-forwarded-for": "10.0.0.7"}, True),
        (True, {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:8000"}, False),
        (True, {"host": "127.0.0.1:7860", "origin": "https://elsewhere.example"}, False),
        (True, {"host": "rebound.example:7860", "origin": "http://rebound.example:7860"}, False),
        (True, {"host": "rebound.example:7860"}, False),
        (True, {}, False),
        (False, {"host": "me-space.hf.space", "origin": "https://me-space.hf.space"}, True),
        (False, {"host": "10.0.0.3:7860", "origin": "https://me-space.hf.space"}, True),
        (False, {"host": "me-space.hf.space", "origin": "https://elsewhere.example"}, False),
        (False, {"host": "me-space.hf.space", "origin": "null"}, False),
    ],
)
def test_only_the_page_itself_acts_for_its_visitor(monkeypatch, local: bool, headers: dict, own: bool) -> None:
    monkeypatch.setenv("SPACE_HOST", "me-space.hf.space")
    settings.use(Settings(not local, "x", memory_bytes=1, model_bytes=1, local_login=local))
    assert origins.own(headers) is own
