"""What all tests share: the loopback Hub, which must stand before any Hub client is imported."""

import pytest

from .hub.fixtures import hub, hub_token, new_repo_id, start_session_hub, stop_session_hub

__all__ = ["hub", "hub_token", "new_repo_id"]

start_session_hub()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the loopback Hub."""
    stop_session_hub()
