"""Healing tests measure no machine: a fixed speed makes them repeatable."""

import pytest

from tests.healing.support import SPEED


@pytest.fixture
def fixed_speed(monkeypatch):
    monkeypatch.setattr("hf_prune.healing.job.probe", lambda device, parameters: SPEED)
