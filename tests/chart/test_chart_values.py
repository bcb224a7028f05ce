"""values.yaml and its schema: closed, commented, and every value read by a template."""

import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest

from tests.chart.release import CHART, ROOT, Release, merged, render, values_of

DEFAULTS = helm_python.values_from_yaml((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
EXAMPLES = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))

OTHER_PEM = "-----BEGIN PUBLIC KEY-----\nother\n-----END PUBLIC KEY-----\n"
# Another value for what is not a number: numbers are raised by one.
OTHERS: dict[str, Any] = {
    "imagePullSecrets": [{"name": "other"}],
    "allowedPrefixes": ["s3://other"],
    "trustedProxies": ["10.0.0.0/8"],
    "webhookPrefixes": ["https://other.example.org"],
    "issuer": "https://other.example.org",
    "tolerations": [{"key": "other", "operator": "Exists"}],
    "resources": {"limits": {"memory": "9Gi"}},
    "uri": "s3://other/store",
    "publicKey": OTHER_PEM,
    "endpointUrl": "http://other.example.org",
    "rayAddress": "http://other.example.org",
    "size": "9Gi",
    "scratchSize": "9Gi",
    "accessMode": "ReadWriteMany",
    "pullPolicy": "Never",
    "logLevel": "debug",
    "launcher": "kuberay",
    "submissionMode": "K8sJobMode",
    "customResources": {"other": 1},
    "version": "9.9.9",
    "gpuResource": "other.example.org/gpu",
    "interval": "9s",
    "encoders": [{"modality": "audio", "kind": "synthetic", "width": 8}],
    "enabled": False,
}
OTHER_TEXT, OTHER_MAP = "other", {"other": "x"}
# Values that say something only together with others.
CONTEXTS: list[dict[str, Any]] = [{}, values_of("production"), values_of("queued")]


def _leaves(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        if isinstance(value, dict) and value and key != "resources":
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def _at(node: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def _with(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    key, *rest = path
    inner = _with(values.get(key, {}), tuple(rest), value) if rest else value
    return values | {key: inner}


def _another(path: tuple[str, ...], current: Any) -> Any:
    if path[-1] in OTHERS:
        return OTHERS[path[-1]]
    if isinstance(current, dict):
        return OTHER_MAP
    return OTHER_TEXT if isinstance(current, str) else current + 1


@pytest.mark.parametrize("path", list(_leaves(DEFAULTS)), ids=".".join)
def test_every_value_changes_what_is_rendered(path: tuple[str, ...]) -> None:
    for context in CONTEXTS:
        changed = _with(context, path, _another(path, _at(merged(context), path)))
        try:
            if render(changed) != render(context):
                return
        except helm_python.HelmRenderError:
            # A second replica on SQLite: read, and refused.
            return
    pytest.fail(f"no template reads {'.'.join(path)}")


@pytest.mark.parametrize("example", EXAMPLES)
def test_chart_lints_without_a_warning(example: str) -> None:
    report = helm_python.lint(CHART, values_of(example), strict=True)
    icon = "icon is recommended"
    assert [message for message in report["messages"] if message["error"] != icon] == []
    assert report["errors"] == []


def _objects(schema: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield where, schema
        for key, part in schema.items():
            yield from _objects(part, f"{where}/{key}")


def test_schema_is_closed_at_every_level() -> None:
    # Helm itself puts `global` into the values of a chart that another one depends on.
    open_ones = [
        where
        for where, schema in _objects(SCHEMA)
        if schema.get("additionalProperties", True) is True
    ]
    assert open_ones == ["/properties/global"]


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").removeprefix("#/definitions/")
    found: dict[str, Any] = SCHEMA["definitions"][name] if name else schema
    return found


def _schema_leaves(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    properties = _resolved(schema).get("properties")
    if properties is None or path[-1:] == ("resources",):
        yield path
        return
    for key, part in properties.items():
        yield from _schema_leaves(part, (*path, key))


def test_schema_and_defaults_have_the_same_keys() -> None:
    assert {*_schema_leaves(SCHEMA)} - {("global",)} == {*_leaves(DEFAULTS)}


def test_every_value_is_explained() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    leaves = {path[-1] for path in _leaves(DEFAULTS)}
    silent = [
        line
        for above, line in itertools.pairwise(lines)
        if (key := re.match(r" *(\w+):", line)) and key[1] in leaves and "#" not in above
    ]
    # Below `resources` keys belong to Kubernetes.
    assert silent == []


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"services": {}}, r"additional properties 'services' not allowed"),
        ({"service": {"replica": 2}}, r"'/service': additional properties 'replica' not allowed"),
        (
            {"training": {"workers": {"resources": {"limit": {}}}}},
            r"'/training/workers/resources': additional properties 'limit' not allowed",
        ),
        ({"service": {"port": 0}}, r"'/service/port': minimum: got 0, want 1"),
        ({"training": {"ranks": 0}}, r"'/training/ranks': minimum: got 0, want 1"),
        ({"training": {"launcher": "slurm"}}, r"'/training/launcher': value must be one of 'ray'"),
        ({"training": {"rayJobs": {"queue": "A b"}}}, r"'/training/rayJobs/queue': 'A b' does not"),
        (
            {"training": {"driver": {"customResources": {"slot": -1}}}},
            r"'/training/driver/customResources/slot': minimum: got -1, want 0",
        ),
        (
            {"serving": {"encoders": [{"modality": "text", "kind": "clip", "width": 8}]}},
            r"'/serving/encoders/0/kind': value must be one of 'synthetic'",
        ),
        ({"training": {"gpusPerRank": -1}}, r"'/training/gpusPerRank': minimum: got -1, want 0"),
        ({"service": {"logLevel": "loud"}}, r"'/service/logLevel': value must be one of 'debug'"),
        ({"service": {"allowedPrefixes": ["s3://a,s3://b"]}}, r"'/service/allowedPrefixes/0'"),
        (
            {"access": {"endpoint": {"publicKey": "other"}}},
            r"'/access/endpoint/publicKey': 'other' d",
        ),
        ({"store": {"uri": "ftp://host/x"}}, r"'/store/uri': 'ftp://host/x' does not match"),
        ({"store": {"uri": "file:///a%20b"}}, r"'/store/uri': 'file:///a%20b' does not match"),
        ({"access": {"oidc": {"issuer": "http://x"}}}, r"'/access/oidc/issuer': 'http://x' does"),
        ({"service": {"webhookPrefixes": ["file:///x"]}}, r"'/service/webhookPrefixes/0'"),
        ({"service": {"reconcileSeconds": 0}}, r"'/service/reconcileSeconds': exclusiveMinimum"),
    ],
    ids=lambda part: json.dumps(part) if isinstance(part, dict) else "",
)
def test_a_wrong_value_is_refused_by_its_path(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=complaint):
        render(values)


def test_whole_numbers_stay_whole(production: Release) -> None:
    assert production.settings()["CMCL_MAX_BODY_BYTES"] == "4194304"
    assert not any("e+" in str(value) for value in production.settings().values())


def test_chart_has_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = helm_python.values_from_yaml((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"]
