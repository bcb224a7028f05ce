"""Ingress and HTTPRoute: the two public addresses."""

from collections.abc import Callable
from pathlib import Path

import helm_python
import pytest
from fastapi.routing import iter_route_contexts

from cmcl.contract.version import ANNOUNCEMENTS
from cmcl.storage.local import LocalStore
from tests.chart.release import CHART, ROOT, Object, Release, render, values_of
from tests.fakes.control_plane import ControlPlane
from tests.fakes.flaky_store import FlakyStore
from tests.unit.serve.conftest import Replica
from workers.serve.api.app import describe
from workers.serve.settings import ServeSettings

ARGS = ServeSettings.model_validate({"store": "file:///unused"})
KEYS: Object = values_of("production")["access"]["endpoint"]
ADDRESSES: Object = {
    "ingress": {"hosts": ["embeddings.example.org"]},
    "httpRoute": {"parentRefs": [{"name": "public"}]},
}
ENVIRONMENTS = sorted(
    path
    for folder in (CHART / "ci", CHART / "examples", ROOT / "deploy" / "environments")
    for path in folder.glob("*")
)


@pytest.fixture(params=ADDRESSES)
def kind(request: pytest.FixtureRequest) -> str:
    """Each way of exposing a part."""
    return str(request.param)


def _of_service(folder: Path) -> set[str]:
    plane = ControlPlane(folder)
    routes = {str(getattr(route, "path", "")) for route in plane.app.routes}
    pages = iter_route_contexts(plane.app.state.page.routes)
    routes |= {context.path for context in pages if context.path}
    found = routes | set(plane.app.openapi()["paths"])
    plane.close()
    return found - {""}


def _of_serving(folder: Path) -> set[str]:
    app = describe(Replica(FlakyStore(LocalStore(folder)), ARGS).parts(ARGS))
    routes = {str(getattr(route, "path", "")) for route in app.routes}
    return (routes | set(app.openapi()["paths"]) | {ANNOUNCEMENTS}) - {""}


def _routed(item: Object) -> set[str]:
    """Prefixes, by whole parts of the path, as both kinds of objects understand them."""
    rules = item["spec"]["rules"]
    if item["kind"] == "Ingress":
        paths = [path for rule in rules for path in rule["http"]["paths"]]
        assert {path["pathType"] for path in paths} == {"Prefix"}
        return {path["path"] for path in paths}
    (rule,) = rules
    assert {match["path"]["type"] for match in rule["matches"]} == {"PathPrefix"}
    return {match["path"]["value"] for match in rule["matches"]}


@pytest.mark.parametrize(
    ("name", "of_application", "hidden"),
    [
        ("demo-cmcl", _of_service, {"/metrics"}),
        ("demo-cmcl-serving", _of_serving, {ANNOUNCEMENTS, "/openapi.json"}),
    ],
)
def test_the_world_is_led_to_nothing_that_is_internal(
    production: Release,
    locked_down: Release,
    name: str,
    of_application: Callable[[Path], set[str]],
    hidden: set[str],
    tmp_path: Path,
) -> None:
    for item in (production.one("Ingress", name), locked_down.one("HTTPRoute", name)):
        prefixes = _routed(item)
        unreached = {
            path
            for path in of_application(tmp_path)
            if not any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)
        }
        assert unreached == hidden
        assert not any("/-/routes".startswith(prefix) for prefix in prefixes), "Ray Serve's own"


def test_the_page_alone_goes_through_the_proxy_that_signs_browsers_in(kind: str) -> None:
    """It adds a token to what any site makes a browser send, and only the page checks where a request comes from."""
    oidc = {"issuer": "https://login.example.org", "audience": "cmcl"}
    values = {"oidc": oidc, "page": {"proxyService": "oauth2-proxy"}}
    release = render({"service": {kind: ADDRESSES[kind]}, "access": values})
    (item,) = release.of_kind("Ingress", "HTTPRoute")
    if kind == "ingress":
        paths = [path for rule in item["spec"]["rules"] for path in rule["http"]["paths"]]
        services = [path["backend"]["service"] for path in paths]
        routed = {
            (path["path"], service["name"], service["port"]["number"])
            for path, service in zip(paths, services, strict=True)
        }
    else:
        routed = {
            (match["path"]["value"], backend["name"], backend["port"])
            for rule in item["spec"]["rules"]
            for match in rule["matches"]
            for backend in rule["backendRefs"]
        }
    direct = {"/v1", "/healthz", "/readyz", "/docs", "/openapi.json"}
    assert routed == {
        *((path, "demo-cmcl", 8000) for path in direct),
        *((path, "oauth2-proxy", 80) for path in ("/ui", "/oauth2")),
    }


def test_an_endpoint_without_keys_is_exposed_only_on_purpose(kind: str) -> None:
    values: Object = {"serving": {kind: ADDRESSES[kind]}}
    render(values | {"access": {"endpoint": KEYS}})
    opened = render(values | {"access": {"endpoint": {"open": True}}})
    assert "access_public_key" not in opened.serve_args()
    assert "requires no keys" in opened.notes


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_every_exposed_service_requires_keys(path: Path) -> None:
    release = render(helm_python.values_from_yaml(path.read_text()))
    assert release.settings()["CMCL_AUTH"] == "on"
    if release.of_kind("Ingress", "HTTPRoute"):
        assert release.serve_args()["access_public_key"].startswith("-----BEGIN PUBLIC KEY")
        assert "CMCL_SNAPSHOT_SIGNING_KEY" in release.settings()
