"""A control plane that may deliver to this machine, and receivers there."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.fakes.receiver import Receiver, receiving
from tests.unit.service.webhooks.harness import WebhookHarness


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def other_receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, without a listener."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def harness(
    tmp_path: Path, receiver: Receiver, other_receiver: Receiver, closed_port: int
) -> Iterator[WebhookHarness]:
    """A harness with the receivers' addresses permitted."""
    ports = (receiver.port, other_receiver.port, closed_port)
    prefixes = tuple(f"http://127.0.0.1:{port}" for port in ports)
    plane = ControlPlane(tmp_path, webhook_prefixes=prefixes)
    plane.create_model()
    yield WebhookHarness(plane)
    plane.close()


@pytest.fixture
def plane_without_prefixes(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane that permits any public https address."""
    plane = ControlPlane(tmp_path / "other")
    yield plane
    plane.close()
