"""The benchmark from POST to live, on two datasets of one policy: the form of its document and page."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.live.growth import measure_growth
from benchmarks.live.memory import memory_of
from benchmarks.post_to_live import document_of, markdown, measure_policy
from benchmarks.report import machine
from cmcl.client import Client
from cmcl.demo.stream import read_stream
from cmcl.stack import LocalStack

pytestmark = pytest.mark.ray

STREAM = Path("examples/stream")
RECORDED = (
    *("post", "queued", "preparing", "prepared", "submitting"),
    *("waiting", "reading", "moments", "training", "certifying", "writing", "done"),
    *("gating", "storing", "pointer", "answer"),
)


def test_the_phases_add_up_to_the_time_from_post_to_live(stack: LocalStack, client: Client) -> None:
    stream = read_stream(STREAM)
    two = replace(stream, datasets=stream.datasets[:2])
    found = measure_policy(stack.folder / "store", client, two, "preserve")
    growth = measure_growth((1, 2), dict.fromkeys(("audio", "image", "text"), 16))
    document = document_of({"preserve": found}, None, growth)
    second = found["datasets"][1]["seconds"]
    assert document["policies"]["preserve"]["median_s"] == pytest.approx(second, abs=0.01)
    assert document["cold_first_s"] == found["datasets"][0]["seconds"]
    assert document["growth_2_over_1"] > 0
    assert all(each > 0 for each in document["version_bytes"]["preserve"])
    assert [phase for phase in RECORDED if phase not in found["phases"]] == []
    for each in found["datasets"]:
        assert sum(each["phases"].values()) == pytest.approx(each["seconds"], abs=0.1)
        # A file's time may be rounded down to a tick of the system's clock.
        assert all(seconds > -0.05 for seconds in each["phases"].values())
    memory = memory_of(stack)
    assert "python -m service" in memory
    about = {"ready_s": 0.0, "store_bytes": 1, "rest_mib": 1, "memory": memory}
    whole = document | about | {"machine": machine()}
    page = markdown(whole | {"before": whole})
    assert all(f"| {phase} |" in page for phase in RECORDED)
    assert "| policy | POST to live |" in page
    assert "| preserve before |" in page
