"""Ingress and HTTPRoute: the two addresses that users know."""

import helm_python
import pytest

from tests.chart.release import Release, render

PORTS = {"demo-cmcl": 8000, "demo-cmcl-serving-serve-svc": 8000}


def test_nothing_is_exposed_unless_asked_for(trial: Release) -> None:
    assert trial.of_kind("Ingress", "HTTPRoute") == []


@pytest.mark.parametrize(
    ("name", "host", "service"),
    [
        ("demo-cmcl", "cmcl.example.org", "demo-cmcl"),
        ("demo-cmcl-serving", "embeddings.example.org", "demo-cmcl-serving-serve-svc"),
    ],
)
def test_an_ingress_leads_to_its_service(
    production: Release, locked_down: Release, name: str, host: str, service: str
) -> None:
    spec = production.one("Ingress", name)["spec"]
    (rule,) = spec["rules"]
    (path,) = rule["http"]["paths"]
    assert (rule["host"], spec["ingressClassName"]) == (host, "nginx")
    assert spec["tls"][0]["hosts"] == [host]
    assert path["backend"]["service"] == {"name": service, "port": {"number": PORTS[service]}}
    (backend,) = locked_down.one("HTTPRoute", name)["spec"]["rules"][0]["backendRefs"]
    assert backend == {"name": service, "port": PORTS[service]}


def test_a_route_names_its_gateway_and_hosts(locked_down: Release) -> None:
    route = locked_down.one("HTTPRoute", "demo-cmcl-serving")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"]["hostnames"] == ["embeddings.example.org"]
    assert route["spec"]["parentRefs"] == [
        {"name": "internal", "namespace": "gateways", "sectionName": "https"}
    ]


def test_openshift_makes_a_route_of_an_ingress(openshift: Release) -> None:
    ingress = openshift.one("Ingress", "demo-cmcl")
    assert ingress["metadata"]["annotations"]["route.openshift.io/termination"] == "edge"
    assert "ingressClassName" not in ingress["spec"]


@pytest.mark.parametrize("part", ["service", "serving"])
@pytest.mark.parametrize(
    ("kind", "missing"), [("ingress", "host is missing"), ("httpRoute", "parentRefs is empty")]
)
def test_one_without_an_address_is_refused(part: str, kind: str, missing: str) -> None:
    with pytest.raises(helm_python.HelmRenderError, match=rf"{part}\.{kind}\.{missing}"):
        render({part: {kind: {"enabled": True}}})
