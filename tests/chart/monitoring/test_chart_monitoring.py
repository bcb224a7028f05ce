"""Monitors and alert rules for Prometheus."""

import re

import helm_python
import pytest

from tests.chart.release import ROOT, Object, Release, render

RULES = (ROOT / "deploy" / "prometheus" / "rules.yaml").read_text()


def test_monitor_finds_the_service_and_its_port(production: Release) -> None:
    monitor = production.one("ServiceMonitor", "demo-cmcl")
    service = production.one("Service", "demo-cmcl")
    selector = monitor["spec"]["selector"]["matchLabels"]
    assert selector.items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]


def test_the_rules_are_those_that_promtool_tests(production: Release) -> None:
    assert "{{ $labels.job }}" in RULES
    spec = production.one("PrometheusRule", "demo-cmcl")["spec"]
    service = 'cmcl_service_reconcile_round_age_seconds{namespace="test", job="demo-cmcl"}'
    endpoint = 'ray_cmcl_serve_ready{namespace="test", job="test/demo-cmcl-ray"}'
    named = RULES
    for selector in (service, endpoint):
        bare = f"absent({selector.partition('{')[0]})"
        assert named.count(bare) == 1
        named = named.replace(bare, f"absent({selector})")
    declared = helm_python.values_from_yaml(named)
    for group in declared["groups"]:
        group["rules"] = [
            rule for rule in group["rules"] if rule.get("alert") != "CmclTrainingStalled"
        ]
        for rule in group["rules"]:
            link = f"https://docs.example.org/cmcl/runbooks/{rule['alert']}/"
            assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
            rule["annotations"]["runbook_url"] = link
    assert spec == declared


def test_what_is_missing_is_looked_for_under_the_names_that_the_monitors_give(
    production: Release,
) -> None:
    """The Prometheus operator calls a job after its Service, or after namespace and PodMonitor."""
    service = production.one("Service", "demo-cmcl")["metadata"]["name"]
    (pods,) = production.of_kind("PodMonitor")
    gone = {
        rule["alert"]: rule["expr"]
        for group in production.one("PrometheusRule", "demo-cmcl")["spec"]["groups"]
        for rule in group["rules"]
        if "absent(" in rule["expr"]
    }
    assert f'job="{service}"' in gone.pop("CmclServiceDown")
    assert f'job="test/{pods["metadata"]["name"]}"' in gone.pop("CmclEndpointDown")
    assert gone == {}


def test_the_rules_have_a_single_source() -> None:
    link = ROOT / "helm" / "files" / "rules.yaml"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "deploy" / "prometheus" / "rules.yaml"


def test_metric_relabelings_of_users_follow_those_of_the_chart(production: Release) -> None:
    own = {"action": "drop", "sourceLabels": ["__name__"], "regex": "ray_internal_.*"}
    monitor = {"enabled": True, "scrape": {"metricRelabelings": [own]}}
    (item,) = render({"monitoring": {"podMonitor": monitor}}).of_kind("PodMonitor")
    (endpoint,) = item["spec"]["podMetricsEndpoints"]
    (chart,) = production.one("PodMonitor", "demo-cmcl-ray")["spec"]["podMetricsEndpoints"]
    assert endpoint["metricRelabelings"] == [*chart["metricRelabelings"], own]


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
    """Relabel as Prometheus does, for the two actions that the chart uses."""
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
            raise AssertionError(f"unknown action {rule['action']}")
    return labels
