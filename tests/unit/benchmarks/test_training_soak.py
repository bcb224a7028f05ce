"""The soak's page: what grows is said to grow, and what came later is no curve."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.training_soak import MemorySamples, _draw, _markdown

JOBS, SINCE = 40, 10


@pytest.fixture
def document() -> dict[str, Any]:
    """A rank that grows by 2 MiB a job, a service that does not, and a rank that came later."""
    noise = [0.1 * (-1) ** job for job in range(JOBS)]
    samples = MemorySamples(
        JOBS,
        {
            "rank 12": [500.0 + 2 * job + noise[job] for job in range(JOBS)],
            "service": [100 + each for each in noise],
            "rank 99": [500.0] * 5,
        },
    )
    growth = {name: asdict(one) if one else None for name, one in samples.growth(SINCE).items()}
    return {
        "machine": {"cores": 2},
        "jobs": JOBS,
        "failed": [],
        "ranks": 2,
        "width": 512,
        "since": SINCE,
        "seconds": [5.0] * JOBS,
        "mebibytes": samples.mebibytes,
        "growth": growth,
    }


def test_growth_is_reported_with_its_interval(document: dict[str, Any]) -> None:
    page = _markdown(document)
    assert "| rank | 500 | 520 | 578 | +" in page
    assert document["growth"]["rank 12"]["value"] == pytest.approx(200, abs=0.5)
    assert document["growth"]["service"]["value"] == pytest.approx(0, abs=0.5)
    assert page.count("| rank |") == 1
    assert document["growth"]["rank 99"] is None


def test_the_picture_is_drawn(document: dict[str, Any], tmp_path: Path) -> None:
    _draw(document, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 0
