"""Whether every panel and every alert has something to look at: asks a live Prometheus.

`python -m deploy.check_dashboards` starts the whole system and Debian's Prometheus beside it, and uses
it: two datasets, queries, texts, a collection, a rollback, a version in the shadow, refused questions. Then
every expression of the dashboards and of the alert rules is asked at one instant, as dashboards and rules
ask: those of training while a dataset is trained, all others more than a minute after the last change. So is
every metric in those that may show nothing. What this run gives no reason to exist is expected to be missing, by name (NOT_HERE). Exit status 1: an
expression is not understood, or shows nothing. The last line is one JSON document.
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
from cmcl.contract.model import ModelSpec, TrainingSpec
from cmcl.contract.policy import GatePolicy
from cmcl.contract.rollout import CanaryPlan
from cmcl.demo.queries import QueryLoad
from cmcl.demo.stream import read_stream
from cmcl.ports import Ports
from cmcl.stack import LocalStack
from deploy.live_prometheus import Prometheus, PrometheusError, Target

ROOT = Path(__file__).parents[1]
STREAM = ROOT / "examples" / "stream"
MODEL = "dashboards"
# A part of an expression, and why it has no series in this run.
NOT_HERE = {
    "ray_node_gpus_utilization": "this machine has no GPU",
    "ray_node_gram_used": "this machine has no GPU",
    "reconcile_errors": "no step failed",
    'outcome!~"ok': "no call failed",
    "refused_versions": "no version was damaged",
    "refused_key_lists": "no list of keys is read here",
    "shadow_dropped": "every request was shadowed",
    "training_resumed_at": "no attempt went on from a checkpoint",
}
# That it can fire is tested with promtool.
_QUIET = "all is well"
# What the database knows of models is asked for once a minute.
_SHADOW_SECONDS = 70.0
# Figures of a phase that is over within seconds are never scraped.
_SLOW = TrainingSpec(epochs=150)
_TRACE = "import ray; ray.init(logging_level='error'); print('PORT', ray.nodes()[0]['MetricsExportPort'])"


# Series of an attempt, which end with it.
_OF_TRAINING = "cmcl_service_training_"
# Of a metric in an expression; labels and what stands in them are none.
_METRIC = re.compile(r"\b(?:ray_|cmcl_)\w+")
_BRACES = re.compile(r"\{[^}]*\}|\b(?:by|on|without)\s*\([^)]*\)")


class Asked(Protocol):
    """A Prometheus, or what stands for one."""

    def ask(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series at an instant, by default now. Raises PrometheusError."""
        ...


@dataclass(frozen=True)
class Expression:
    """Where it stands, and what it asks. `kind`: of a panel, of an alert, or a metric alone."""

    kind: Literal["panel", "alert", "metric"]
    place: str
    text: str

    @property
    def excuse(self) -> str:
        """Why it may show nothing; empty if it may not."""
        if self.kind == "alert":
            return _QUIET
        reasons = (reason for part, reason in NOT_HERE.items() if part in self.text)
        return next(reasons, "")


@dataclass(frozen=True)
class Instants:
    """When to ask, in seconds since 1970: while something was trained, and at the end."""

    training: Sequence[float]
    end: float

    def of(self, expression: Expression) -> Sequence[float]:
        """Those at which it must show something, at one of them at least."""
        return self.training if _OF_TRAINING in expression.text else [self.end]


@dataclass(frozen=True)
class Answer:
    """What came of an expression; `error` in Prometheus' own words."""

    expression: Expression
    series: int
    error: str = ""

    @property
    def complaint(self) -> str:
        """What is wrong with it; empty if nothing is."""
        asked = self.expression
        if self.error:
            return f"{asked.place}: {self.error}: {asked.text}"
        if self.series == 0 and not asked.excuse:
            return f"{asked.place} shows nothing: {asked.text}"
        return ""


def panels() -> Iterator[Expression]:
    """Of all dashboards, with all jobs and models chosen."""
    for path in sorted((ROOT / "deploy" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                text = re.sub(r"\$\w+", ".*", target["expr"])
                # A filter of what is there anyway: zeros are fine here.
                text = re.sub(r" > 0$", "", text)
                yield Expression("panel", f"{path.stem}: {panel['title']}", text)


def alerts() -> Iterator[Expression]:
    """Of all rules."""
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield Expression("alert", f"alert: {rule['alert']}", rule["expr"])


def metrics_of(quiet: Iterable[Expression]) -> list[Expression]:
    """What may show nothing would show as little if its metrics had other names: so they are asked for."""
    names = {name for one in quiet for name in _METRIC.findall(_BRACES.sub("", one.text))}
    return [Expression("metric", f"metric: {name}", name) for name in sorted(names)]


def expressions() -> list[Expression]:
    """All that is asked."""
    found = [*panels(), *alerts()]
    return [*found, *metrics_of(one for one in found if one.excuse)]


def use(stack: LocalStack) -> Sequence[float]:
    """Do something of everything that is shown. When something was being trained."""
    training: list[float] = []

    def watch(job: Job) -> None:
        print(job.id, job.state)
        if job.state == "running":
            training.append(time.time())

    stream = read_stream(STREAM)
    host, port = "127.0.0.1", stack.ports.embeddings
    with Client(stack.service_url, stack.embeddings_url) as client:
        spec = ModelSpec(width=64, modalities=stream.modalities, training=_SLOW)
        client.create_model(MODEL, spec)
        client.set_policy(MODEL, GatePolicy(max_drift=5.0))
        for dataset in stream.datasets[:2]:
            accepted = client.add_dataset(
                *(MODEL, dataset.name, dataset.pair.modalities, dataset.shards),
                dataset.evaluation_shards,
            )
            client.watch(accepted.job.id, watch)
        probes = stream.probe_rows(32)
        load = QueryLoad(host, port, MODEL, probes, rate=50)
        load.start()
        client.create_collection(MODEL, MODEL)
        client.add_items(
            MODEL, [Item(str(row), "text", feature) for row, feature in enumerate(probes["text"])]
        )
        client.roll_back(MODEL)
        client.set_candidate(MODEL, 2, CanaryPlan(shadow=1.0))
        for words in ("a shoe", "a wheel", "a bag"):
            _ask(stack, {"model": MODEL, "modality": "text", "input": [words]})
        _ask(stack, {"model": "nobody", "modality": "text", "input": ["nothing"]})
        time.sleep(_SHADOW_SECONDS)
        load.stop()
    return training


def _ask(stack: LocalStack, body: dict[str, object]) -> None:
    answer = httpx.post(f"{stack.embeddings_url}/v1/embeddings", json=body, timeout=60)
    print("asked for a text:", answer.status_code)


def ask_all(prometheus: Asked, wanted: Iterable[Expression], instants: Instants) -> list[Answer]:
    """How many series each had, at the instant with the most."""
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
    """How many had series, by kind, and why others have none."""
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
    """Where the Ray node shows what it measures."""
    if stack.start_driver([sys.executable, "-c", _TRACE]).wait(120) != 0:
        raise PrometheusError(f"Ray did not say its port; see {stack.log('driver')}")
    ports = re.findall(r"^PORT (\d+)$", stack.log("driver").read_text(), re.MULTILINE)
    return f"127.0.0.1:{ports[-1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default=shutil.which("prometheus"), help="the program")
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
    """Start everything, use it, and ask."""
    stack = LocalStack(
        folder / "stack",
        Ports.free(),
        allowed_prefixes=(STREAM.as_uri(),),
        encoders=("text=synthetic:384",),
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
