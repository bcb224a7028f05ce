"""What the chart makes of values (facts.yaml) and which values it refuses (refused.yaml), one row at a time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.chart.release import EXAMPLES, Object, Release, environment_of, render, values_of

FOLDER = Path(__file__).parent
FACTS: list[Object] = yaml.safe_load((FOLDER / "facts.yaml").read_text())
REFUSED: list[Object] = yaml.safe_load((FOLDER / "refused.yaml").read_text())


def title(row: Object) -> str:
    return f"{row.get('of', 'default')} {json.dumps(row.get('values', {}))[:80]}"


def over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values over others, as Helm merges files of values."""
    merged = dict(base)
    for name, value in values.items():
        before = merged.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            merged[name] = over(before, value)
        else:
            merged[name] = value
    return merged


def made(row: Object, releases: Mapping[str, Release]) -> list[Release]:
    """The releases that a row is about."""
    if row["of"] == "every":
        return [releases[example] for example in EXAMPLES]
    if "values" not in row and row["of"] != "default":
        return [releases[row["of"]]]
    base = {} if row["of"] == "default" else values_of(row["of"])
    return [render(over(base, row.get("values", {})))]


def part_of(release: Release, name: str) -> Any:
    """An object, or what a row names in place of one; None if the release does not have it."""
    kind, _, name = name.partition("/")
    if kind == "settings":
        return release.settings()
    if kind == "arguments":
        return release.serve_args()
    if kind == "group":
        return release.groups().get(name)
    if kind in ("container", "environment"):
        container = release.container(name)
        return environment_of(container) if kind == "environment" else container
    found = [item for item in release.of_kind(kind) if item["metadata"]["name"] == name]
    return found[0] if found else None


def at(node: Any, path: str) -> Any:
    """The value at a path of names and indexes; None if it is not there."""
    for step in path.split():
        if isinstance(node, list):
            node = node[int(step)] if int(step) < len(node) else None
        elif node is not None:
            node = node.get(step)
    return node


@pytest.mark.parametrize("row", FACTS, ids=title)
def test_the_chart_makes_what_the_table_has(row: Object, releases: Mapping[str, Release]) -> None:
    for release in made(row, releases):
        found, expected = {}, {}
        for name, facts in row["makes"].items():
            part = part_of(release, name)
            if facts is None or part is None:
                found[name, ""], expected[name, ""] = part, facts
                continue
            for path, value in facts.items():
                found[name, path], expected[name, path] = at(part, path), value
        assert found == expected


@pytest.mark.parametrize("row", REFUSED, ids=title)
def test_a_value_that_cannot_work_is_refused_with_its_path(row: Object) -> None:
    base = values_of(row["of"]) if "of" in row else {}
    with pytest.raises(helm_python.HelmError, match=row["message"]):
        render(over(base, row["values"]))
