"""The alert rules: promtool accepts them, each one fires and resolves, and all metrics exist."""

import re
from pathlib import Path
from typing import Any

import helm_python
import pytest

from tests.architecture.repository import ROOT
from tests.deploy.promtool import NoPromtool, run_promtool
from tests.deploy.series import all_series
from tests.fakes.control_plane import ControlPlane

FOLDER = ROOT / "deploy" / "prometheus"
RULES = helm_python.values_from_yaml((FOLDER / "rules.yaml").read_text())
TESTS = helm_python.values_from_yaml((FOLDER / "rules_test.yaml").read_text())
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
NAMES = [rule["alert"] for rule in ALERTS]
PAGES = ROOT / "docs" / "runbooks"
# name{matchers}, or a bare name
SELECTOR = re.compile(r"\b((?:ray_)?cmcl_\w+)\s*(?:\{([^}]*)\})?")
# What Prometheus adds to every series.
TARGET_LABELS = {"namespace", "job", "instance"}
GROUPING = re.compile(r"\b(by|on) \(([^)]*)\)")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    return all_series(tmp_path_factory.mktemp("plane"))


def _selectors() -> list[tuple[str, str, str]]:
    return [
        (rule["alert"], name, matchers)
        for rule in ALERTS
        for name, matchers in SELECTOR.findall(rule["expr"])
    ]


def test_an_alert_looks_at_series_that_we_show(shown: dict[str, set[str]]) -> None:
    assert _selectors()
    for alert, name, matchers in _selectors():
        assert name in shown, f"{alert} looks at {name}, which no component exports"
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        bound = {"le"} if name.endswith("_bucket") else set()
        assert labels <= shown[name] | TARGET_LABELS | bound, alert


def test_installations_of_one_name_in_two_namespaces_are_not_merged() -> None:
    for rule in ALERTS:
        groupings = [labels.split(", ") for _, labels in GROUPING.findall(rule["expr"])]
        assert groupings, rule["alert"]
        assert all(labels[:2] == ["namespace", "job"] for labels in groupings), rule["alert"]


def test_every_alert_has_a_unique_name() -> None:
    assert len(NAMES) == len(set(NAMES)) > 0


def test_an_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, rule["alert"]
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
        assert "for" in rule, rule["alert"]


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} - {"README"} == set(NAMES)


def test_a_page_looks_at_series_that_we_show(shown: dict[str, set[str]]) -> None:
    families = {re.sub("_(total|bucket|count|sum|info)$", "", name) for name in shown}
    for page in PAGES.glob("*.md"):
        named = set(re.findall(r"\b(?:ray_)?cmcl_se(?:rvice|rve)_\w+", page.read_text()))
        bare = {re.sub("_(total|bucket|count|sum|info)$", "", name) for name in named}
        assert bare <= families, page.name


def test_an_alert_was_shown_to_fire_and_to_keep_quiet() -> None:
    for alert in NAMES:
        tests = [test for test in TESTS["tests"] if test["name"].partition(",")[0] == alert]
        fires = [
            sample
            for test in tests
            for expected in test["promql_expr_test"]
            for sample in expected.get("exp_samples", [])
            if f'alertname="{alert}"' in sample["labels"]
        ]
        assert fires, alert
        assert any('job="good"' in str(test["input_series"]) for test in tests), alert
        assert not any('job="good"' in sample["labels"] for sample in fires), alert


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "--lint=all", "--lint-fatal", "deploy/prometheus/rules.yaml"),
        ("test", "rules", "deploy/prometheus/rules_test.yaml"),
    ],
    ids=["check", "test"],
)
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    try:
        done = run_promtool(*arguments)
    except NoPromtool as reason:
        pytest.skip(str(reason))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_promtool_has_nothing_against_our_metrics(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model()
    text = plane.client.get("/metrics").text
    plane.close()
    try:
        done = run_promtool("check", "metrics", text=text)
    except NoPromtool as reason:
        pytest.skip(str(reason))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
