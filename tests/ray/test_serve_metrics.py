"""The series that Prometheus scrapes from an idle endpoint."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
import yaml

from cmcl.contract.model import ModelSpec
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports
from cmcl.storage.object_store import ObjectStore
from deploy.check_dashboards import ray_metrics
from deploy.live_prometheus import Prometheus, Target
from tests.architecture.repository import ROOT
from tests.conftest import METRICS_SECONDS
from tests.deploy.promtool import NoPromtool, find_program
from tests.fakes.versions import publish_version, random_heads

pytestmark = pytest.mark.ray

MODEL = "watched"
SPEC = ModelSpec(width=8, modalities={"image": 5, "text": 4})
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
STARTING_SECONDS = 300.0
# Longer than Ray keeps a gauge that is not set again, two of its intervals, and a report of it, one more.
QUIET_SECONDS = 3 * METRICS_SECONDS + 2
# Answering a scrape takes a quarter of a second of CPU.
SCRAPE_SECONDS = 5
# Gauges that are set on change, and not by each request.
OF_MODEL = f'{{model="{MODEL}"}}'
GAUGES = {
    *("ray_cmcl_serve_ready", "ray_cmcl_serve_announcements_connected"),
    f"ray_cmcl_serve_generations_behind{OF_MODEL}",
}


def ask_for_both(client: httpx.Client) -> int:
    """Request an embedding of each modality; return the worse status."""
    bodies = [
        {"model": MODEL, "modality": name, "input": torch.randn(1, width).tolist()}
        for name, width in SPEC.widths.items()
    ]
    return max(client.post("/v1/embeddings", json=body).status_code for body in bodies)


def shown(prometheus: Prometheus) -> set[str]:
    """The gauges that have series at this instant."""
    return {selector for selector in GAUGES if prometheus.ask(selector)}


def alerts_on_the_gauges() -> set[str]:
    """Names of the rules that read one of the gauges; rates of requests are of all tests of the stack."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    names = {selector.partition("{")[0] for selector in GAUGES}
    found = {
        rule["alert"]
        for group in groups
        for rule in group["rules"]
        if names & set(re.findall(r"\w+", rule["expr"]))
    }
    assert "CmclEndpointDown" in found
    return found


@pytest.fixture
def prometheus(stack: LocalStack, tmp_path: Path) -> Iterator[Prometheus]:
    """Watches Ray's node as deploy/prometheus/README.md has it, with the rules that we ship."""
    try:
        program = find_program("prometheus")
    except NoPromtool as reason:
        pytest.skip(str(reason))
    targets = [Target("cmcl-ray", ray_metrics(stack))]
    port = Ports.free().service
    folder = tmp_path / "prometheus"
    with Prometheus(program, folder, port, targets, RULES, SCRAPE_SECONDS) as running:
        yield running


def test_series_of_an_endpoint_stay_while_nothing_changes_and_no_alert_waits_to_fire(
    prometheus: Prometheus, stack: LocalStack, store: ObjectStore
) -> None:
    publish_version(store, MODEL, 1, SPEC, random_heads(SPEC, 1), generation=1)
    deadline = time.monotonic() + STARTING_SECONDS
    seen: set[str] = set()
    with httpx.Client(base_url=stack.embeddings_url, timeout=STARTING_SECONDS) as client:
        while seen != GAUGES:
            assert time.monotonic() < deadline, GAUGES - seen
            ask_for_both(client)
            seen |= shown(prometheus)
            time.sleep(0.5)
        time.sleep(QUIET_SECONDS)
        assert GAUGES - shown(prometheus) == set()
        assert prometheus.alerts().keys() & alerts_on_the_gauges() == set()
        assert ask_for_both(client) == 200
