"""docs/observability.md lists exactly the metrics and log fields of the service."""

import re
from pathlib import Path

import pytest
from prometheus_client.core import Metric

from service.telemetry.logs import FIELDS
from tests.architecture.repository import ROOT
from tests.unit.service.telemetry.samples import every_family, labels_of

GUIDE = (ROOT / "docs" / "observability.md").read_text()
ROW = re.compile(r"^\| `(cmcl_service_\w+)` \| (\w+) \| ([\w, -]+) \| (.+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> list[Metric]:
    every = every_family(tmp_path_factory.mktemp("plane"))
    return [family for family in every if family.name.startswith("cmcl_service_")]


def test_every_metric_is_described_with_its_labels(families: list[Metric]) -> None:
    described = {name: (kind, labels) for name, kind, labels, _ in ROW.findall(GUIDE)}
    assert described == {
        family.name: (family.type, ", ".join(sorted(labels_of(family))) or "-")
        for family in families
    }


def test_every_metric_has_been_seen_with_a_sample(families: list[Metric]) -> None:
    """Without a sample its labels would be unknown, and the comparison above incomplete."""
    assert [family.name for family in families if not family.samples] == []


def test_a_control_plane_has_a_few_hundred_series(families: list[Metric]) -> None:
    assert sum(len(family.samples) for family in families) < 850


def test_panels_show_what_is_there(families: list[Metric], tmp_path: Path) -> None:
    panels = GUIDE.partition("## Panels")[2]
    bare = {
        re.sub(r"_(total|bucket|count|sum)$", "", name)
        # Names of Ray's metrics begin differently, and are not metrics of the control plane.
        for name in re.findall(r"\bcmcl_\w+", panels)
    }
    assert bare
    assert bare <= {family.name for family in families}


def test_every_field_of_the_log_is_described() -> None:
    log = GUIDE.partition("## Log")[2].partition("## Traces")[0]
    named = {
        name
        for row in re.findall(r"^\| (`.+`) \|", log, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    own = {"at", "level", "logger", "message", "traceback", "request_id", "trace_id", "principal"}
    assert named == {*FIELDS, *own}
