"""An environment with other people's packages."""

from pathlib import Path

import pytest

from tests.fakes.optional_environment import optional_environment


@pytest.fixture(scope="session")
def client_python() -> Path:
    """The interpreter of the environment; skips where its packages cannot be installed."""
    return optional_environment("clients", "tests/clients/requirements.lock")
