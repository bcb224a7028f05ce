"""Example values for kinds of sites: the chart accepts each, and Kubernetes accepts the result."""

import re

import helm_python
import pytest

from tests.chart.release import ROOT, Release, render
from tests.chart.restricted import injected, violations
from tests.chart.schemas import complaints_of_kubernetes

FOLDER = ROOT / "deploy" / "environments"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
CORE = {"Deployment", "Service", "ConfigMap", "Job", "Pod", "HorizontalPodAutoscaler", "Ingress"}


@pytest.fixture(params=NAMES)
def release(request: pytest.FixtureRequest) -> Release:
    """Each environment in turn."""
    text = (FOLDER / f"{request.param}.yaml").read_text()
    return render(helm_python.values_from_yaml(text))


def test_kubernetes_takes_what_an_environment_makes(release: Release) -> None:
    items = release.of_kind(*CORE)
    assert {"Deployment", "Service", "ConfigMap", "Pod"} <= {item["kind"] for item in items}
    assert [words for item in items for words in complaints_of_kubernetes(item)] == []


def test_every_pod_of_an_environment_is_restricted(release: Release) -> None:
    specs = [template["spec"] for template in release.pod_templates().values()]
    specs += [spec for _, spec in injected(release)]
    assert len(specs) > 4
    assert [words for spec in specs for words in violations(spec)] == []


@pytest.mark.parametrize("name", NAMES)
def test_prometheus_may_reach_every_scrape_target(name: str) -> None:
    """The chart rejects it otherwise; Prometheus runs in its own namespace."""
    values = helm_python.values_from_yaml((FOLDER / f"{name}.yaml").read_text())
    policy, monitoring = values["networkPolicy"], values.get("monitoring", {})
    assert ("serviceMonitor" in monitoring) is ("monitoring" in policy) is (name != "laptop")
    for peer in policy.get("monitoring", []):
        assert peer["namespaceSelector"]["matchLabels"]


def test_no_environment_contains_a_secret() -> None:
    for name in NAMES:
        text = (FOLDER / f"{name}.yaml").read_text()
        assert re.findall(r"(?i)(password|private|secret_?access_?key|token): *\S", text) == []
