"""What Prometheus is told."""

import helm_python

from tests.chart.release import ROOT, Release


def test_monitoring_is_off_unless_asked_for(trial: Release) -> None:
    assert trial.of_kind("ServiceMonitor", "PrometheusRule") == []


def test_monitor_finds_the_service_and_its_port(production: Release) -> None:
    monitor = production.one("ServiceMonitor", "demo-cmcl")
    service = production.one("Service", "demo-cmcl")
    selector = monitor["spec"]["selector"]["matchLabels"]
    assert selector.items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert (endpoint["path"], endpoint["interval"]) == ("/metrics", "15s")


def test_prometheus_can_select_monitor_and_rules(production: Release) -> None:
    for item in production.of_kind("ServiceMonitor", "PrometheusRule"):
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
