"""The RayService: arguments of the application, its addresses, and the end of its pods."""

from ipaddress import IPv4Network
from pathlib import Path

import helm_python
import pytest

from cmcl.haproxy import SERVING, trusted_proxies
from tests.chart.ray.resources import custom_resources
from tests.chart.release import (
    CHART,
    Object,
    Release,
    each_release,
    environment_of,
    render,
)
from workers.serve.encoders.deployment import ENCODER, REPLICA
from workers.serve.settings import ServeArgs, ServeSettings

# Arguments that the chart derives, or takes from other values.
ELSEWHERE = {
    *("store", "replicas", "replicas_per_node", "encoders"),
    *("access_public_key", "allowed_hosts"),
}
# Pods of the chart have no CPUs for it: replicas book places.
ELSEWHERE.add("num_cpus")
DEFAULTS = helm_python.values_from_yaml((CHART / "values.yaml").read_text())["serving"]["args"]


def _serving(release: Release) -> Object:
    spec: Object = release.one("RayService", "demo-cmcl-serving")["spec"]
    return spec


def _serve_config(release: Release) -> Object:
    return helm_python.values_from_yaml(_serving(release)["serveConfigV2"])


# Ray's own models warn while they are imported.
@each_release()
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
def test_serve_config_is_one_that_ray_accepts(release: Release) -> None:
    from ray.serve.schema import ServeDeploySchema  # takes seconds, and only this test needs it

    deployed = ServeDeploySchema.model_validate(_serve_config(release))
    (application,) = deployed.applications
    assert (application.name, application.route_prefix) == ("embeddings", "/")


@each_release()
def test_replicas_use_the_store_of_the_service(release: Release) -> None:
    (application,) = _serve_config(release)["applications"]
    arguments = ServeArgs.model_validate(application["args"])
    assert arguments.store == release.settings()["CMCL_STORE_URI"]


@each_release()
def test_pods_of_one_kind_have_places_for_no_other(release: Release) -> None:
    """Ranks book CPUs, replicas and encoders a resource each (workers/serve/encoders/deployment.py)."""
    groups = release.groups()
    for name, resource in (("replicas", REPLICA), ("encoders", ENCODER)):
        if name in groups:
            assert groups[name]["rayStartParams"]["num-cpus"] == "0"
            assert set(custom_resources(groups[name])) == {resource}
    if "ranks" in groups:
        assert int(groups["ranks"]["rayStartParams"]["num-cpus"]) > 0
        assert custom_resources(groups["ranks"]) == {}


@each_release()
def test_clients_reach_the_proxies_on_port_8000(release: Release) -> None:
    cluster = _serving(release)["rayClusterConfig"]
    config = _serve_config(release)
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        ports = group["template"]["spec"]["containers"][0]["ports"]
        assert {"name": "serve", "containerPort": 8000} in ports
    assert _serving(release)["excludeHeadPodFromServeSvc"] is True


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def test_all_arguments_arrive_as_they_were_chosen() -> None:
    # All values differ, so that a swapped one is detected.
    numbers = sorted(set(ServeArgs.model_fields) - ELSEWHERE - {"trusted_proxies", "watch_queries"})
    chosen = {
        name: 2 * (DEFAULTS[_camel(name)] or 1) + number for number, name in enumerate(numbers)
    }
    assert len(set(chosen.values())) == len(chosen)
    args = {
        **{_camel(name): value for name, value in chosen.items()},
        "trustedProxies": ["10.244.0.0/16"],
        "watchQueries": False,
    }
    args_read = ServeArgs.model_validate(render({"serving": {"args": args}}).serve_args())
    assert {name: getattr(args_read, name) for name in chosen} == chosen
    assert args_read.trusted_proxies == (IPv4Network("10.244.0.0/16"),)
    assert args_read.watch_queries is False


def test_chart_and_application_have_the_same_defaults() -> None:
    args_read = ServeArgs.model_validate(render({}).serve_args())
    named = {"store": args_read.store, "allowed_hosts": args_read.allowed_hosts}
    assert args_read == ServeArgs(**named, replicas_per_node=1)


def test_every_node_that_serves_has_haproxy_and_the_time_to_drain(production: Release) -> None:
    cluster = _serving(production)["rayClusterConfig"]
    expected = {
        **SERVING,
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "45",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "45",
    }
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert expected.items() <= environment_of(container).items()


def test_timeouts_of_haproxy_match_those_of_the_endpoint() -> None:
    variables = environment_of(render({}).container("serving"))
    prefix = "RAY_SERVE_HAPROXY"
    limits = ServeSettings(store="file:///store")
    # For a body as well (cmcl/haproxy.py).
    assert variables[f"{prefix}_TIMEOUT_CLIENT_S"] == f"{limits.body_seconds:g}"
    # The longest that a request may ask for comes on top of its body; a proxy that is replaced ends after a replica.
    assert float(variables[f"{prefix}_TIMEOUT_SERVER_S"]) >= 600 + 2 * limits.body_seconds
    longest = limits.body_seconds + limits.queue_seconds
    assert float(variables[f"{prefix}_HARD_STOP_AFTER_S"]) >= longest


@pytest.mark.parametrize(
    ("serving", "expected"),
    [
        ({}, ()),
        ({"trustedProxies": ["10.0.3.7", "fd00::/8"]}, ("10.0.3.7/32", "fd00::/8")),
    ],
)
def test_trusted_proxies_are_as_they_were_chosen(
    serving: Object, expected: tuple[str, ...]
) -> None:
    variables = environment_of(render({"serving": serving}).container("serving"))
    # Kubernetes takes a variable without a value for an empty one.
    assert trusted_proxies({name: value or "" for name, value in variables.items()}) == expected


# They are read when ray.serve is imported, which warns while it is.
@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
def test_the_proxy_variables_exist_in_ray(trial: Release) -> None:
    from ray.serve._private import constants

    source = Path(constants.__file__).read_text()
    variables = environment_of(trial.container("serving"))
    ours = {name for name in variables if name.startswith("RAY_SERVE_")}
    assert ours >= SERVING.keys()
    assert {name for name in ours if f'"{name}"' not in source} == set()


def test_a_pod_that_goes_drains_first(production: Release) -> None:
    for name in ("replicas", "encoders"):
        pod = production.groups()[name]["template"]["spec"]
        (*_, words) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert "--deadline-remaining-seconds 45 && sleep 45" in words
        assert pod["terminationGracePeriodSeconds"] > 45


@each_release()
def test_replicas_prefer_different_nodes(release: Release) -> None:
    template = release.groups()["replicas"]["template"]
    constraints = template["spec"]["topologySpreadConstraints"]
    assert [item["topologyKey"] for item in constraints] == [
        *("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]
    for item in constraints:
        assert item["labelSelector"]["matchLabels"] == template["metadata"]["labels"]
