"""The parent chart that includes KubeRay's operator, off by default."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import helm_python
import pytest

from tests.chart.release import CHART, ROOT

FOLDER = ROOT / "deploy" / "with-operator"
AROUND = helm_python.values_from_yaml((FOLDER / "Chart.yaml").read_text())
OURS = helm_python.values_from_yaml((CHART / "Chart.yaml").read_text())


def test_the_operator_is_there_for_those_who_want_it() -> None:
    ours, operator = AROUND["dependencies"]
    assert (ours["name"], ours["version"]) == (OURS["name"], OURS["version"])
    assert (FOLDER / ours["repository"].removeprefix("file://")).resolve() == CHART
    values = helm_python.values_from_yaml((FOLDER / "values.yaml").read_text())
    section, _, key = operator["condition"].partition(".")
    assert (operator["name"], values[section][key]) == ("kuberay-operator", False)
    assert AROUND["version"] == OURS["version"]


def test_it_is_one_version_of_the_operator_the_same_everywhere() -> None:
    _, operator = AROUND["dependencies"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", operator["version"]), (
        "no range: later releases are untested"
    )
    script = (ROOT / "deploy" / "kind" / "up.sh").read_text()
    assert f"kuberay-operator --version {operator['version']} " in script


@pytest.fixture
def with_parts(tmp_path: Path) -> Iterator[helm_python.Chart]:
    """Create the folder as `helm dependency build` does, with an empty chart for the operator's."""
    folder = tmp_path / "with-operator"
    shutil.copytree(FOLDER, folder)
    shutil.copytree(CHART, folder / "charts" / "cmcl")
    stub = folder / "charts" / "kuberay-operator"
    stub.mkdir()
    version = AROUND["dependencies"][1]["version"]
    stub.joinpath("Chart.yaml").write_text(
        f"apiVersion: v2\nname: kuberay-operator\nversion: {version}\n"
    )
    with helm_python.Chart.load(folder) as chart:
        yield chart


def test_a_parent_chart_may_enable_and_disable_this_chart(tmp_path: Path) -> None:
    """Uses the usual condition of a dependency, `cmcl.enabled`, which Helm passes to our values."""
    folder = tmp_path / "umbrella"
    shutil.copytree(CHART, folder / "charts" / "cmcl")
    folder.joinpath("Chart.yaml").write_text(
        f"apiVersion: v2\nname: umbrella\nversion: 1.0.0\ndependencies:\n"
        f"  - {{name: cmcl, version: {OURS['version']}, condition: cmcl.enabled}}\n"
    )
    with helm_python.Chart.load(folder) as chart:
        for enabled in (True, False):
            values = {"cmcl": {"enabled": enabled}, "global": {"region": "x"}}
            files = chart.render(values, name="demo", namespace="test")
            assert any("cmcl/templates" in path for path in files) is enabled


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"training": {"ranks": 3}}, r"cmcl-with-operator:\n- at '': additional properties 'train"),
        ({"operator": {}}, r"additional properties 'operator' not allowed"),
        ({"kuberay-operator": {"enabled": "yes"}}, r"'/kuberay-operator/enabled': got string"),
        ({"cmcl": {"training": {"rank": 3}}}, r"'/training': additional properties 'rank' not"),
    ],
)
def test_values_in_the_wrong_place_are_refused(
    with_parts: helm_python.Chart, values: dict[str, object], complaint: str
) -> None:
    with pytest.raises(helm_python.HelmError, match=complaint):
        with_parts.render(values, name="demo", namespace="test")
