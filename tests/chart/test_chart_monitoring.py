"""What Prometheus is told."""

from tests.chart.release import Release


def test_monitoring_is_off_unless_asked_for(trial: Release) -> None:
    assert trial.of_kind("ServiceMonitor") == []


def test_monitor_finds_the_service_and_its_port(production: Release) -> None:
    monitor = production.one("ServiceMonitor", "demo-cmcl")
    service = production.one("Service", "demo-cmcl")
    selector = monitor["spec"]["selector"]["matchLabels"]
    assert selector.items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert (endpoint["path"], endpoint["interval"]) == ("/metrics", "15s")


def test_prometheus_can_select_the_monitor(production: Release) -> None:
    assert (
        production.one("ServiceMonitor", "demo-cmcl")["metadata"]["labels"]["release"]
        == "prometheus"
    )
