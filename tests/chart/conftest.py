"""Renders the chart once per set of values."""

import pytest

from tests.chart.release import EXAMPLES, Release, render, values_of


@pytest.fixture(scope="session")
def releases() -> dict[str, Release]:
    """The chart rendered with every set of values in helm/ci and helm/examples."""
    return {example: render(values_of(example)) for example in EXAMPLES}


@pytest.fixture
def trial(releases: dict[str, Release]) -> Release:
    """SQLite and a file:// store on volumes."""
    return releases["trial"]


@pytest.fixture
def production(releases: dict[str, Release]) -> Release:
    """PostgreSQL, S3 with keys, GPUs, several replicas, an ingress, monitoring."""
    return releases["production"]


@pytest.fixture
def queued(releases: dict[str, Release]) -> Release:
    """Each attempt a RayJob in a queue."""
    return releases["queued"]


@pytest.fixture
def gpu(releases: dict[str, Release]) -> Release:
    """GPUs from none, by Ray's autoscaler."""
    return releases["gpu"]


@pytest.fixture
def one_cluster(releases: dict[str, Release]) -> Release:
    """One Ray cluster for training and serving."""
    return releases["one-cluster"]


@pytest.fixture
def locked_down(releases: dict[str, Release]) -> Release:
    """Restricted egress, image digests, existing service accounts, the Gateway API."""
    return releases["locked-down"]


@pytest.fixture
def openshift(releases: dict[str, Release]) -> Release:
    """The cluster chooses the user."""
    return releases["openshift"]
