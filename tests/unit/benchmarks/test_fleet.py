"""The benchmark of many running jobs at a tiny size: candidates become live, and what was counted is reported."""

from pathlib import Path

import pytest

from benchmarks.fleet.measure import Control, Fleet, measure

TINY = Fleet(
    running=6, call_seconds=0.001, heartbeat=0.5, seconds=5.0, ends_per_second=0.7, warm_up=1.0
)


@pytest.mark.parametrize("control", ["queue", "rounds"])
def test_candidates_become_live_and_requests_are_counted(tmp_path: Path, control: Control) -> None:
    found = measure(TINY, tmp_path, control)
    assert (found["running"], found["models"], found["replicas"]) == (6, 6, 1)
    assert found["candidates"] >= 1
    assert found["not_live"] == 0
    assert 0 < found["candidate_to_live_p50_s"] <= found["candidate_to_live_p99_s"]
    for figure in ("store_requests_per_job_minute", "ray_requests_per_job_minute", "cores"):
        assert found[figure] > 0
    assert found["progress_age_p99_s"] > 0
