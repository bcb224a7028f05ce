"""values.yaml and its schema: closed, commented, and every value read by a template."""

import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest

from tests.chart.release import CHART, EXAMPLES, ROOT, merged, values_of

DEFAULTS = helm_python.values_from_yaml((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
# Another value for what is no number.
OTHERS = helm_python.values_from_yaml((ROOT / "tests" / "chart" / "others.yaml").read_text())
OTHER_TEXT, OTHER_MAP = "other", {"other": "x"}
# Keys below these belong to Kubernetes: their maps are replaced as a whole.
WHOLES = {"resources", "helperResources", "labels", "scrape"}


def _leaves(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        if isinstance(value, dict) and value and key not in WHOLES:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def _at(node: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        # Helm drops a null.
        node = node.get(key)
    return node


def _with(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    key, *rest = path
    inner = _with(values.get(key, {}), tuple(rest), value) if rest else value
    return values | {key: inner}


def _another(path: tuple[str, ...], current: Any) -> Any:
    for name in (".".join(path), ".".join(path[-2:]), path[-1]):
        if name in OTHERS:
            return OTHERS[name]
    if isinstance(current, bool):
        return not current
    if isinstance(current, dict):
        return OTHER_MAP
    if isinstance(current, list):
        return [*current, OTHER_TEXT]
    return OTHER_TEXT if isinstance(current, str) else current + 1


def test_every_value_changes_what_is_rendered() -> None:
    # The examples that read most values come first, so that the others are rarely rendered.
    order = sorted(EXAMPLES, key=lambda example: (example != "production", example != "queued"))
    with helm_python.Chart.load(CHART) as chart:
        sets = [(values_of(example), merged(values_of(example))) for example in order]
        rendered = [_rendered(chart, values) for values, _ in sets]
        unread = [
            ".".join(path)
            for path in _leaves(DEFAULTS)
            if not any(
                _rendered(chart, _with(values, path, _another(path, _at(whole, path)))) != before
                for (values, whole), before in zip(sets, rendered, strict=True)
            )
        ]
    assert unread == []


def _rendered(chart: helm_python.Chart, values: dict[str, Any]) -> dict[str, str] | None:
    """Rendered text by file; None if the value is rejected, which shows that it was read."""
    try:
        return chart.render(values, name="demo", namespace="test")
    except helm_python.HelmRenderError:
        return None


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
    is_whole = {*path[-1:]} & WHOLES or (path and _at(DEFAULTS, path) in ({}, []))
    if properties is None or is_whole:
        yield path
        return
    for key, part in properties.items():
        yield from _schema_leaves(part, (*path, key))


def test_schema_and_defaults_have_the_same_keys() -> None:
    schema = SCHEMA | {"properties": dict(SCHEMA["properties"])}
    for for_other_charts in ("global", "enabled"):
        del schema["properties"][for_other_charts]
    assert {*_schema_leaves(schema)} == {*_leaves(DEFAULTS)}


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


def test_chart_has_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = helm_python.values_from_yaml((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"]
