"""The page of the training benchmark shows what the document has."""

from benchmarks.training.page import markdown

TIMING = {
    "median": 0.5,
    "mean": 0.25,
    "p95": 1.0,
    "cpu": 0.125,
    "windows": 9,
    "calm_windows": 3,
    "others": 0.5,
}


def test_rates_are_shown_beside_the_bare_loop_and_starts_part_by_part() -> None:
    page = markdown(
        {
            "loops": [
                {
                    "batch": 64,
                    "threads": 1,
                    "loops": {"bare": TIMING, "mask": {**TIMING, "mean": 0.5}},
                }
            ],
            "reading": {"rows": 8, "bytes": 2**20, "shards": 2, "readers": {"ours": TIMING}},
            "start": {"ranks": 2, "datasets": [{"reading": 0.75, "total": 1.5}]},
            "goals": [{"what": "mask / bare", "measured": 0.5, "goal": 0.7}],
            "configuration": {"rounds": 3},
            "machine": {"cores": 2},
        }
    )
    assert "| mask / bare | 0.50 | 0.7 |" in page
    assert "| mask | 500.00 | 500.00 | 1000.00 | 125.00 | 128 | 0.50 | 1.00 | 9 (3), 50% |" in page
    assert "| ours | 0.50 | 1.00 | 0.12 | 2 | 9 (3), 50% |" in page
    assert "| 1 | 0.75 | 1.50 |" in page
