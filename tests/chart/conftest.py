"""Renders the chart once per set of values."""

import pytest

from tests.chart.release import Release, render, values_of


@pytest.fixture(scope="session")
def releases() -> dict[str, Release]:
    """The chart with every set of values that helm/ci has."""
    return {example: render(values_of(example)) for example in ("trial", "production", "queued")}


@pytest.fixture(params=["trial", "production"])
def release(request: pytest.FixtureRequest, releases: dict[str, Release]) -> Release:
    """Each set in turn, for what must always hold."""
    return releases[request.param]


@pytest.fixture
def trial(releases: dict[str, Release]) -> Release:
    """SQLite and a file:// store on volumes."""
    return releases["trial"]


@pytest.fixture
def production(releases: dict[str, Release]) -> Release:
    """PostgreSQL, S3 with keys, GPUs, several replicas."""
    return releases["production"]


@pytest.fixture
def queued(releases: dict[str, Release]) -> Release:
    """Each attempt a RayJob in a queue."""
    return releases["queued"]
