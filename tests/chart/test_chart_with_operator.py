"""The chart around ours that brings KubeRay's operator along, off by default."""

import helm_python

from tests.chart.release import CHART, ROOT

FOLDER = ROOT / "deploy" / "with-operator"
AROUND = helm_python.values_from_yaml((FOLDER / "Chart.yaml").read_text())
OURS = helm_python.values_from_yaml((CHART / "Chart.yaml").read_text())


def test_our_own_chart_needs_no_download() -> None:
    """Helm stops at a dependency that is not in charts/, even where its condition is off."""
    assert "dependencies" not in OURS


def test_the_operator_is_there_for_those_who_want_it() -> None:
    ours, operator = AROUND["dependencies"]
    assert (ours["name"], ours["version"]) == (OURS["name"], OURS["version"])
    assert (FOLDER / ours["repository"].removeprefix("file://")).resolve() == CHART
    values = helm_python.values_from_yaml((FOLDER / "values.yaml").read_text())
    section, _, key = operator["condition"].partition(".")
    assert (operator["name"], values[section][key]) == ("kuberay-operator", False)
    assert AROUND["version"] == OURS["version"]
