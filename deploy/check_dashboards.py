"""Check that every dashboard panel and every alert has series, with a live Prometheus.

`python -m deploy.check_dashboards` starts the whole system and Debian's Prometheus, and uses the system:
two datasets, queries, texts, a collection, a rollback, rejected requests. It then
evaluates every expression of the dashboards and alert rules at one instant: training expressions during
training, all others more than a minute after the last change. Expressions that may be empty have their
metrics queried as well. NOT_HERE lists series that this run does not cause. Exit status 1: an expression
is invalid or empty. The last line is one JSON document.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx
import yaml

from cmcl import Client
from cmcl.client import Item, Job
from cmcl.contract.encoder import parse_encoder
from cmcl.contract.model import Gate, ModelSpec, TrainingSpec
from cmcl.demo.queries import QueryLoad
from cmcl.demo.run import read_stream
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports
from deploy.live_prometheus import Prometheus, PrometheusError, Target

ROOT = Path(__file__).parents[1]
STREAM = ROOT / "examples" / "stream"
MODEL = "dashboards"
# Parts of expressions without series in this run, with the reason.
NOT_HERE = {
    "ray_node_gpus_utilization": "this machine has no GPU",
    "ray_node_gram_used": "this machine has no GPU",
    "preparation_": "datasets are prepared between two scrapes",
    "reconcile_errors": "no step failed",
    'outcome!~"ok': "no call failed",
    "refused_versions": "no version was damaged",
    "refused_key_lists": "no list of keys is read here",
    "evicted_versions": "no budget for heads is full",
}
# promtool tests that alerts fire.
_QUIET = "all is well"
# Gauges of models are read from the database once a minute.
_SETTLE_SECONDS = 70.0
# A phase of a few seconds would not be scraped.
_SLOW = TrainingSpec(epochs=150)
_TRACE = "import ray; ray.init(logging_level='error'); print('PORT', ray.nodes()[0]['MetricsExportPort'])"


# Series of an attempt end with it.
_OF_TRAINING = "cmcl_service_training_"
# Name of a metric in an expression, excluding labels and their values.
_METRIC = re.compile(r"\b(?:ray_|cmcl_)\w+")
_BRACES = re.compile(r"\{[^}]*\}|\b(?:by|on|without)\s*\([^)]*\)")


class QueryClient(Protocol):
    """A Prometheus, or a fake."""

    def ask(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the series at an instant, by default now. Raises PrometheusError."""
        ...


@dataclass(frozen=True)
class Expression:
    """An expression and its location. `kind`: panel, alert or single metric."""

    kind: Literal["panel", "alert", "metric"]
    place: str
    text: str

    @property
    def excuse(self) -> str:
        """Return why it may be empty, or an empty string."""
        if self.kind == "alert":
            return _QUIET
        reasons = (reason for part, reason in NOT_HERE.items() if part in self.text)
        return next(reasons, "")


@dataclass(frozen=True)
class Instants:
    """Instants of evaluation, in seconds since 1970: during training, and at the end."""

    training: Sequence[float]
    end: float

    def of(self, expression: Expression) -> Sequence[float]:
        """Return the instants, at one of which it must have series."""
        return self.training if _OF_TRAINING in expression.text else [self.end]


@dataclass(frozen=True)
class Answer:
    """Result of an expression; `error` is Prometheus' message."""

    expression: Expression
    series: int
    error: str = ""

    @property
    def complaint(self) -> str:
        """Return the problem, or an empty string."""
        asked = self.expression
        if self.error:
            return f"{asked.place}: {self.error}: {asked.text}"
        if self.series == 0 and not asked.excuse:
            return f"{asked.place} shows nothing: {asked.text}"
        return ""


def panels() -> Iterator[Expression]:
    """Return the expressions of all dashboards, for all jobs and models."""
    for path in sorted((ROOT / "deploy" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                text = re.sub(r"\$\w+", ".*", target["expr"])
                # A filter of existing series; zeros are valid here.
                text = re.sub(r" > 0$", "", text)
                yield Expression("panel", f"{path.stem}: {panel['title']}", text)


def alerts() -> Iterator[Expression]:
    """Return the expressions of all alerts."""
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield Expression("alert", f"alert: {rule['alert']}", rule["expr"])


def metrics_of(quiet: Iterable[Expression]) -> list[Expression]:
    """Return the metrics of expressions that may be empty, because a misspelt metric is empty too."""
    names = {name for one in quiet for name in _METRIC.findall(_BRACES.sub("", one.text))}
    return [Expression("metric", f"metric: {name}", name) for name in sorted(names)]


def expressions() -> list[Expression]:
    """Return all expressions."""
    found = [*panels(), *alerts()]
    return [*found, *metrics_of(one for one in found if one.excuse)]


def use(stack: LocalStack) -> Sequence[float]:
    """Use every part that metrics cover. Return instants during training."""
    training: list[float] = []

    def watch(job: Job) -> None:
        print(job.id, job.state)
        if job.state == "running":
            training.append(time.time())

    stream = read_stream(STREAM)
    host, port = "127.0.0.1", stack.ports.embeddings
    with Client(stack.service_url, stack.embeddings_url) as client:
        spec = ModelSpec(
            width=64,
            modalities=stream.modalities,
            training=_SLOW,
            policy="preserve",
        )
        client.create_model(MODEL, spec)
        client.set_gate(MODEL, Gate(max_drift=5.0))
        for dataset in stream.datasets[:2]:
            accepted = client.add_dataset(
                *(MODEL, dataset.name, dataset.pair.modalities, dataset.shards),
                dataset.evaluation_shards,
            )
            client.watch(accepted.job.id, watch)
        probes = stream.probe_rows(32, datasets=1)
        load = QueryLoad(host, port, MODEL, probes, rate=50)
        load.start()
        client.create_collection(MODEL, MODEL)
        client.add_items(
            MODEL, [Item(str(row), "text", feature) for row, feature in enumerate(probes["text"])]
        )
        client.roll_back(MODEL)
        for words in ("a shoe", "a wheel", "a bag"):
            _ask(stack, {"model": MODEL, "modality": "text", "input": [words]})
        _ask(stack, {"model": "missing", "modality": "text", "input": ["nothing"]})
        time.sleep(_SETTLE_SECONDS)
        load.stop()
    return training


def _ask(stack: LocalStack, body: dict[str, object]) -> None:
    answer = httpx.post(f"{stack.embeddings_url}/v1/embeddings", json=body, timeout=60)
    print("asked for a text:", answer.status_code)


def ask_all(
    prometheus: QueryClient, wanted: Iterable[Expression], instants: Instants
) -> list[Answer]:
    """Return the number of series of each expression, at the instant with the most."""
    answers = []
    for expression in wanted:
        try:
            counts = [
                len(prometheus.ask(expression.text, instant)) for instant in instants.of(expression)
            ]
            answers.append(Answer(expression, max(counts, default=0)))
        except PrometheusError as error:
            answers.append(Answer(expression, 0, str(error)))
    return answers


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Summarise expressions with series by kind, and reasons of empty ones."""
    counts = {}
    for kind in ("panel", "alert", "metric"):
        found = [answer for answer in answers if answer.expression.kind == kind]
        shown = sum(answer.series > 0 for answer in found)
        counts[kind] = {"asked": len(found), "with_series": shown}
    missing: dict[str, list[str]] = {}
    for answer in answers:
        if answer.series == 0 and answer.expression.kind != "alert" and answer.expression.excuse:
            missing.setdefault(answer.expression.excuse, []).append(answer.expression.place)
    complaints = sum(bool(answer.complaint) for answer in answers)
    return {**counts, "missing": missing, "complaints": complaints}


def ray_metrics(stack: LocalStack) -> str:
    """Return the metrics address of the Ray node."""
    if stack.start_driver([sys.executable, "-c", _TRACE]).wait(120) != 0:
        raise PrometheusError(f"Ray did not report its metrics port; see {stack.log('driver')}")
    ports = re.findall(r"^PORT (\d+)$", stack.log("driver").read_text(), re.MULTILINE)
    return f"127.0.0.1:{ports[-1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--prometheus", default=shutil.which("prometheus"), help="path of the prometheus program"
    )
    options = parser.parse_args(arguments)
    if options.prometheus is None:
        print("prometheus is not on PATH (Debian has a package of that name)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        answers = check(Path(options.prometheus), Path(name))
    for answer in answers:
        asked = answer.expression
        print(f"{answer.series:4d}  {asked.place}  {'' if answer.series else asked.excuse}")
    complaints = [answer.complaint for answer in answers if answer.complaint]
    print(*complaints, json.dumps(summary(answers)), sep="\n")
    return 1 if complaints else 0


def check(program: Path, folder: Path) -> list[Answer]:
    """Start the system, use it, and evaluate all expressions."""
    stack = LocalStack(
        folder / "stack",
        Ports.free(),
        allowed_prefixes=(STREAM.as_uri(),),
        encoders=(parse_encoder("words=synthetic:text:384"),),
    )
    with stack:
        service = Target("service", f"127.0.0.1:{stack.ports.service}")
        targets = [service, Target("ray", ray_metrics(stack))]
        port = Ports.free().service
        with Prometheus(program, folder / "prometheus", port, targets) as prometheus:
            training = use(stack)
            return ask_all(prometheus, expressions(), Instants(training, time.time()))


if __name__ == "__main__":
    sys.exit(main())
