"""NetworkPolicies: which pods reach which ports. Ray runs any code for a client that reaches its ports."""

from collections.abc import Iterator

import pytest

from tests.chart.release import (
    Object,
    Release,
    each_release,
    is_uninstall_hook,
    render,
    values_of,
)

RAY_PORTS = {6379, 8265, 10001, 52365, 30000}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
INSIDE = {"app.kubernetes.io/part-of": "cmcl", "app.kubernetes.io/instance": "demo"}
STRANGER = {"app": "somebody"}
ONCE = {"test", "migration", "rebuild", "uninstall"}
ONE_CLUSTER = {"oneCluster": True, "authSecret": "x"}


def admits(release: Release, component: str, port: int | str, caller: dict[str, str]) -> bool:
    """Whether a pod with these labels, in any namespace, reaches a port of a component."""
    policies = [item["spec"] for item in release.of_kind("NetworkPolicy")]
    chosen = [spec for spec in policies if _selects(spec["podSelector"], _own(component))]
    assert chosen, f"nothing protects {component}"
    return any(
        _has_port(rule, port) and _comes_from(rule, caller)
        for spec in chosen
        for rule in spec["ingress"]
    )


def _own(component: str) -> dict[str, str]:
    return {**INSIDE, "app.kubernetes.io/component": component}


def _has_port(rule: Object, port: int | str) -> bool:
    return "ports" not in rule or any(entry["port"] == port for entry in rule["ports"])


def _comes_from(rule: Object, caller: dict[str, str]) -> bool:
    if not rule.get("from"):
        return True
    return any(_selects(peer.get("podSelector", {}), caller) for peer in rule["from"])


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    assert {expression["operator"] for expression in expressions} <= {"In"}
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def _components(release: Release) -> set[str]:
    labels = (template["metadata"]["labels"] for template in release.pod_templates().values())
    found = {own["app.kubernetes.io/component"] for own in labels}
    # One-off pods accept no connections: see below.
    return found - ONCE


@each_release()
def test_other_pods_reach_no_port_of_ray(release: Release) -> None:
    for component in _components(release) - {"service"}:
        for port in RAY_PORTS:
            assert not admits(release, component, port, STRANGER), (component, port)


@each_release()
def test_pods_of_one_ray_cluster_reach_each_other(release: Release) -> None:
    for component in _components(release) - {"service"}:
        for port in RAY_PORTS:
            assert admits(release, component, port, _own(component))


def test_two_ray_clusters_do_not_reach_each_other(trial: Release, one_cluster: Release) -> None:
    assert not admits(trial, "training", 6379, _own("serving"))
    assert not admits(trial, "serving", 30000, _own("training"))
    # One cluster is one.
    assert admits(one_cluster, "training", 6379, _own("serving"))
    assert admits(one_cluster, "serving", 30000, _own("training"))


def test_jobs_are_submitted_by_the_control_plane_alone(
    trial: Release, one_cluster: Release
) -> None:
    assert admits(trial, "training", 8265, _own("service"))
    assert not admits(trial, "serving", 8265, _own("service"))
    assert admits(one_cluster, "serving", 8265, _own("service"))


@each_release()
def test_kuberay_reaches_what_it_asks(release: Release) -> None:
    for port in (8265, 8000):
        assert admits(release, "serving", port, OPERATOR)
    assert not admits(release, "serving", 6379, OPERATOR)


def test_kuberay_submits_rayjobs(queued: Release) -> None:
    # No pod of them is in the chart: the service makes them, with the labels of training.
    assert admits(queued, "training", 8265, OPERATOR)
    assert admits(queued, "training", 8265, _own("training")), "a submitter's pod"


def test_all_clients_are_allowed_until_some_are_named(trial: Release, production: Release) -> None:
    assert admits(trial, "service", "http", STRANGER)
    assert admits(trial, "serving", 8000, STRANGER)
    ingress = {"kubernetes.io/metadata.name": "ingress-nginx"}
    for item in production.of_kind("NetworkPolicy"):
        if item["metadata"]["name"] == "demo-cmcl":
            peers = [peer for rule in item["spec"]["ingress"] for peer in rule["from"]]
            assert {"namespaceSelector": {"matchLabels": ingress}} in peers


@pytest.mark.parametrize("monitoring", [[], [{"podSelector": {"matchLabels": {"app": "prom"}}}]])
def test_only_named_clients_are_allowed(monitoring: list[Object]) -> None:
    clients = [{"podSelector": {"matchLabels": {"app": "ingress"}}}]
    release = render({"networkPolicy": {"clients": clients, "monitoring": monitoring}})
    for component, port in (("service", "http"), ("serving", 8000)):
        assert admits(release, component, port, {"app": "ingress"})
        assert admits(release, component, port, _own("test"))
        assert not admits(release, component, port, STRANGER)
    assert admits(release, "serving", 8000, _own("service")), "which tells it of changes"
    assert admits(release, "service", "http", {"app": "prom"}) is bool(monitoring)


@each_release()
def test_one_off_pods_accept_no_connections(release: Release) -> None:
    labels = (template["metadata"]["labels"] for template in release.pod_templates().values())
    found = {own["app.kubernetes.io/component"] for own in labels}
    for component in found & ONCE:
        assert not admits(release, component, "http", _own("service"))


def test_the_migration_has_a_policy_before_it_runs(locked_down: Release) -> None:
    """In a namespace that denies all traffic; the release's other policies are created later."""
    policy = locked_down.one("NetworkPolicy", "demo-cmcl-migration")
    job = locked_down.one("Job", "demo-cmcl-migration")
    for hook in ("helm.sh/hook", "helm.sh/hook-delete-policy"):
        assert policy["metadata"]["annotations"][hook] == job["metadata"]["annotations"][hook]
    assert int(policy["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
    assert "helm.sh/hook-weight" not in job["metadata"]["annotations"], "which is 0"
    named = values_of("locked-down")["networkPolicy"]["egress"]
    assert [rule for rule in policy["spec"]["egress"] if rule in named] == named


def test_the_helm_test_reaches_the_services(locked_down: Release) -> None:
    rules = locked_down.one("NetworkPolicy", "demo-cmcl-smoke")["spec"]["egress"]
    for component in ("service", "serving"):
        assert any(
            _selects(peer["podSelector"], _own(component)) and _has_port(rule, 8000)
            for rule in rules
            for peer in rule["to"]
            if "podSelector" in peer
        )


@pytest.mark.parametrize("monitor", ["serviceMonitor", "podMonitor"])
def test_a_prometheus_that_is_named_gets_in(monitor: str) -> None:
    policy = {"clients": [{"podSelector": {"matchLabels": {"app": "ingress"}}}]}
    values = {"networkPolicy": policy, "monitoring": {monitor: {"enabled": True}}}
    policy["monitoring"] = [{"podSelector": {"matchLabels": {"app": "prom"}}}]
    assert admits(render(values), "service", "http", {"app": "prom"})


def test_name_servers_are_reached_where_their_pods_listen(
    openshift: Release, locked_down: Release
) -> None:
    """OpenShift's listen on another port than their Service, and policies see the pods'."""
    for release, ports in ((openshift, {53, 5353}), (locked_down, {53})):
        for item in _policies(release):
            to_names = item["spec"]["egress"][0]["ports"]
            assert {(entry["port"], entry["protocol"]) for entry in to_names} == {
                (port, protocol) for port in ports for protocol in ("UDP", "TCP")
            }


def _policies(release: Release) -> list[Object]:
    """The policies that exist while the release is installed."""
    return [item for item in release.of_kind("NetworkPolicy") if not is_uninstall_hook(item)]


def _egress(release: Release) -> Iterator[tuple[str, Object]]:
    for item in _policies(release):
        for rule in item["spec"].get("egress", []):
            yield item["metadata"]["name"], rule


def test_restricted_pods_reach_names_store_and_their_own(locked_down: Release) -> None:
    named = values_of("locked-down")["networkPolicy"]["egress"]
    for item in _policies(locked_down):
        rules = item["spec"]["egress"]
        assert item["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert {"port": 53, "protocol": "UDP"} in rules[0]["ports"]
        assert [rule for rule in rules if rule in named] == named
        assert all(rule.get("to") or rule["ports"] for rule in rules)


def _may_ask_kubernetes(values: Object) -> dict[str, Object]:
    """By policy: the rule that allows the Kubernetes API."""
    ports = values["networkPolicy"]["kubernetesApi"]["ports"]
    wanted = [{"port": port, "protocol": "TCP"} for port in ports]
    rules = _egress(render(values))
    return {name: rule for name, rule in rules if rule.get("ports") == wanted}


@pytest.mark.parametrize(
    ("changes", "asks"),
    [
        ({"training": {"autoscaling": {"enabled": True}}}, "demo-cmcl-training"),
        (
            {"training": {"autoscaling": {"enabled": True}}, "ray": ONE_CLUSTER},
            "demo-cmcl-serving",
        ),
        ({"training": {"launcher": "kuberay"}}, "demo-cmcl"),
        ({"training": {}}, None),
    ],
    ids=["autoscaler", "autoscaler of one cluster", "RayJobs", "none"],
)
def test_only_pods_that_call_kubernetes_may_reach_it(changes: Object, asks: str | None) -> None:
    """Pods with a token of Kubernetes: no submitter has one, no rank, no hook but that of uninstalling."""
    values = values_of("locked-down") | changes
    values["networkPolicy"]["kubernetesApi"] = {"ports": [16443]}
    assert [*_may_ask_kubernetes(values)] == ([asks] if asks else [])
    holders = {
        template["metadata"]["labels"]["app.kubernetes.io/component"]
        for template in render(values).pod_templates(at_the_end=False).values()
        if _has_a_token(template["spec"])
    }
    assert len(holders) == (1 if asks else 0)


def _has_a_token(spec: Object) -> bool:
    mounted = {"name": "kubernetes-token"}.items()
    return spec["automountServiceAccountToken"] or any(
        mounted <= volume.items() for volume in spec["volumes"]
    )


def test_the_kubernetes_api_is_anywhere_until_its_networks_are_named(locked_down: Release) -> None:
    (rule,) = [rule for _, rule in _egress(locked_down) if "to" not in rule]
    assert [entry["port"] for entry in rule["ports"]] == [443, 6443]
    values = values_of("locked-down")
    cidrs = ["10.0.0.0/28", "fd00::/64"]
    values["networkPolicy"]["kubernetesApi"] = {"cidrs": cidrs, "ports": [6443]}
    rule = _may_ask_kubernetes(values)["demo-cmcl-training"]
    assert rule["to"] == [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]
