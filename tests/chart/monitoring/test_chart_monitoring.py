"""What Prometheus is told."""

import re

import helm_python
import pytest

from tests.chart.release import ROOT, Object, Release


def test_monitoring_is_off_unless_asked_for(trial: Release) -> None:
    assert trial.of_kind("ServiceMonitor", "PodMonitor", "PrometheusRule") == []


def test_monitor_finds_the_service_and_its_port(production: Release) -> None:
    monitor = production.one("ServiceMonitor", "demo-cmcl")
    service = production.one("Service", "demo-cmcl")
    selector = monitor["spec"]["selector"]["matchLabels"]
    assert selector.items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert (endpoint["path"], endpoint["interval"]) == ("/metrics", "15s")


def test_prometheus_can_select_monitor_and_rules(production: Release) -> None:
    for item in production.of_kind("ServiceMonitor", "PodMonitor", "PrometheusRule"):
        assert item["metadata"]["labels"]["release"] == "prometheus"


def test_the_rules_are_those_that_promtool_tests(production: Release) -> None:
    rules = (ROOT / "deploy" / "prometheus" / "rules.yaml").read_text()
    assert "{{ $labels.job }}" in rules
    spec = production.one("PrometheusRule", "demo-cmcl")["spec"]
    assert spec == helm_python.values_from_yaml(rules)


def test_the_rules_stand_in_one_place_only() -> None:
    link = ROOT / "helm" / "files" / "rules.yaml"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "deploy" / "prometheus" / "rules.yaml"


def test_traces_are_made_only_where_they_are_collected(trial: Release, production: Release) -> None:
    variable = "OTEL_EXPORTER_OTLP_ENDPOINT"
    assert variable not in [entry["name"] for entry in trial.container("service")["env"]]
    (entry,) = [
        entry for entry in production.container("service")["env"] if entry["name"] == variable
    ]
    assert entry["value"] == "http://collector.example.org:4318"


def test_ray_nodes_are_scraped_where_kuberay_opens_the_port(production: Release) -> None:
    spec = production.one("PodMonitor", "demo-cmcl-ray")["spec"]
    (expression,) = spec["selector"]["matchExpressions"]
    assert (expression["operator"], expression["values"]) == ("In", ["training", "serving"])
    (endpoint,) = spec["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["interval"]) == ("metrics", "20s")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        # Two replicas in one pod differ in nothing else.
        (
            {"__name__": "ray_cmcl_serve_rows_total", "WorkerId": "a1", "model": "m"},
            {"__name__": "ray_cmcl_serve_rows_total", "worker": "a1", "model": "m"},
        ),
        (
            {"__name__": "ray_tasks", "WorkerId": "a1", "otel_scope_name": "x"},
            {"__name__": "ray_tasks"},
        ),
        ({"__name__": "ray_node_mem_used"}, {"__name__": "ray_node_mem_used"}),
    ],
)
def test_ids_of_processes_stay_with_our_own_series_alone(
    production: Release, labels: dict[str, str], expected: dict[str, str]
) -> None:
    (endpoint,) = production.one("PodMonitor", "demo-cmcl-ray")["spec"]["podMetricsEndpoints"]
    assert _relabelled(labels, endpoint["metricRelabelings"]) == expected


def _relabelled(labels: dict[str, str], rules: list[Object]) -> dict[str, str]:
    """As Prometheus does it, for the two actions that we use."""
    for rule in rules:
        if rule["action"] == "labeldrop":
            dropped = re.compile(rule["regex"])
            labels = {name: text for name, text in labels.items() if not dropped.fullmatch(name)}
        elif rule["action"] == "replace":
            joined = ";".join(labels.get(name, "") for name in rule["sourceLabels"])
            if found := re.fullmatch(rule["regex"], joined):
                assert rule["replacement"] == "$1"
                labels = {**labels, rule["targetLabel"]: found[1]}
        else:
            raise AssertionError(f"nobody here knows the action {rule['action']}")
    return labels
