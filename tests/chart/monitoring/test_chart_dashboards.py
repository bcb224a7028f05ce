"""Dashboards for Grafana: one source, and every expression uses an exported metric."""

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.chart.release import CHART, ROOT, Release
from tests.deploy.promtool import NoPromtool, run_promtool
from tests.deploy.series import SUFFIXES, all_series

FOLDER = ROOT / "deploy" / "dashboards"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
DASHBOARDS: dict[str, Any] = {
    name: json.loads((FOLDER / f"{name}.json").read_text()) for name in NAMES
}
METRIC = re.compile(r"\b(?:ray_|cmcl_)\w+")
# Labels and their values are not metrics.
BRACES = re.compile(r"\{[^}]*\}|\b(?:by|on|without)\s*\([^)]*\)")


def _expressions(dashboard: Any) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """By name: every series that a control plane, a replica, an encoder or a Ray node exports."""
    service = set(all_series(tmp_path_factory.mktemp("plane")))
    return service | _of_encoders() | _of_nodes()


def _of_encoders() -> set[str]:
    source = (ROOT / "workers" / "serve" / "encoders" / "deployment.py").read_text()
    names = re.findall(r'Histogram\(\s*"(\w+)"', source)
    assert names
    return {f"ray_{name}{part}" for name in names for part in SUFFIXES["histogram"]}


def _of_nodes() -> set[str]:
    """Series that Ray's agent exports on each node."""
    # Importing it takes a second, and OpenCensus then calls what Python 3.12 deprecated.
    spec = find_spec("ray.dashboard.modules.reporter.reporter_agent")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    return {f"ray_{name}" for name in re.findall(r'"(node_\w+)"', source)}


@pytest.mark.parametrize("name", NAMES)
def test_every_expression_uses_an_exported_metric(name: str, shown: set[str]) -> None:
    expressions = list(_expressions(DASHBOARDS[name]))
    assert len(expressions) > 10
    unknown = {
        metric
        for expression in expressions
        for metric in METRIC.findall(BRACES.sub("", expression))
        if metric not in shown
    }
    assert unknown == set()


@pytest.mark.parametrize("name", NAMES)
def test_prometheus_understands_every_expression(name: str, tmp_path: Path) -> None:
    written = [expr for expr in _expressions(DASHBOARDS[name]) if not expr.startswith("label_")]
    rules = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(written)]
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps({"groups": [{"name": name, "rules": rules}]}))
    try:
        checked = run_promtool("check", "rules", str(path))
    except NoPromtool as error:
        pytest.skip(str(error))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_lets_one_choose_the_source(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == f"cmcl-{name}"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("name", NAMES)
def test_no_two_panels_lie_on_each_other(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_dashboards_have_a_single_source() -> None:
    link = CHART / "files" / "dashboards"
    assert link.is_symlink()
    assert link.resolve() == FOLDER
    assert NAMES == ["service", "serving", "training"]


def test_grafana_is_given_each_as_it_is(production: Release, trial: Release) -> None:
    for name in NAMES:
        config_map = production.one("ConfigMap", f"demo-cmcl-dashboard-{name}")
        assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert config_map["metadata"]["annotations"] == {"grafana_folder": "cmcl"}
        assert json.loads(config_map["data"][f"cmcl-{name}.json"]) == DASHBOARDS[name]
    names = [item["metadata"]["name"] for item in trial.of_kind("ConfigMap")]
    assert not any("dashboard" in name for name in names)
