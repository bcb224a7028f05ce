"""What the check of dashboards and alerts accepts and rejects; `python -m deploy.check_dashboards` runs
it against a Prometheus that watches the whole system.
"""

import math
from typing import Any

from deploy.check_dashboards import (
    NOT_HERE,
    Expression,
    Instants,
    ask_all,
    expressions,
    metrics_of,
)
from deploy.live_prometheus import PrometheusError

SHOWN = Expression("panel", "service: Jobs", "sum(cmcl_jobs)")
GONE = Expression("panel", "service: Gone", "sum(cmcl_gone)")
EXCUSED = Expression("panel", "service: Errors", "sum(cmcl_reconcile_errors_total)")
QUIET = Expression("alert", "alert: TooMany", 'sum by (cmcl_no) (cmcl_typo{x="cmcl_no"}) > 5')


AT = Instants(training=[30.0, 60.0], end=120.0)


class FakePrometheus:
    """An expression has a series if all its words that begin with `cmcl_` are known."""

    def __init__(self, *known: str, end: float = math.inf) -> None:
        self._known = known
        self._end = end

    def ask(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Raises PrometheusError where a bracket is not closed."""
        if expression.count("(") != expression.count(")"):
            raise PrometheusError("unclosed left parenthesis")
        words = expression.replace("(", " ").replace(")", " ").replace("{", " ").split()
        if at is not None and at > self._end:
            return []
        return [{}] * all(word in self._known for word in words if word.startswith("cmcl_"))


def complaints(prometheus: FakePrometheus, *wanted: Expression) -> list[str]:
    return [one.complaint for one in ask_all(prometheus, wanted, AT) if one.complaint]


def test_a_panel_with_series_is_fine_and_one_without_is_not() -> None:
    assert complaints(FakePrometheus("cmcl_jobs"), SHOWN, GONE) == [
        "service: Gone shows nothing: sum(cmcl_gone)"
    ]


def test_a_panel_must_show_something_at_the_end_and_one_of_training_while_it_lasts() -> None:
    trained = Expression("panel", "training: Progress", "max(cmcl_service_training_progress)")
    gone = FakePrometheus("cmcl_jobs", "cmcl_service_training_progress", end=60.0)
    assert complaints(gone, SHOWN, trained) == ["service: Jobs shows nothing: sum(cmcl_jobs)"]


def test_a_panel_that_has_nothing_to_show_in_this_run_is_excused() -> None:
    assert "reconcile_errors" in NOT_HERE
    assert complaints(FakePrometheus(), EXCUSED) == []


def test_an_expression_that_is_not_understood_is_never_excused() -> None:
    broken = Expression("panel", "service: Errors", "sum(cmcl_reconcile_errors_total")
    assert complaints(FakePrometheus(), broken) == [
        "service: Errors: unclosed left parenthesis: sum(cmcl_reconcile_errors_total"
    ]


def test_an_alert_may_be_quiet_but_its_metrics_must_be_there() -> None:
    (metric,) = metrics_of([QUIET])
    assert metric.text == "cmcl_typo"
    assert complaints(FakePrometheus(), QUIET, metric) == [
        "metric: cmcl_typo shows nothing: cmcl_typo"
    ]
    assert complaints(FakePrometheus("cmcl_typo"), QUIET, metric) == []


def test_the_metrics_of_every_alert_and_excused_panel_are_queried() -> None:
    asked = expressions()
    metrics = {one.text for one in asked if one.kind == "metric"}
    assert "cmcl_service_records_total" in metrics  # of an alert
    assert "ray_node_gpus_utilization" in metrics  # of a panel without series here
    assert {one.kind for one in asked} == {"panel", "alert", "metric"}
