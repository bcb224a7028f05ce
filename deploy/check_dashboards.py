"""Whether every panel and every alert has something to look at: asks a live Prometheus.

`python -m deploy.check_dashboards` starts the whole system and Debian's Prometheus beside it, and uses
it: two datasets, queries, texts, a rollback, a version in the shadow, questions that are refused. Then
every expression of the dashboards and of the alert rules is asked. What this run gives no reason to
exist is expected to be missing, by name (NOT_HERE). Exit status 1: an expression is not understood, or
shows nothing. The last line is one JSON document.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from cmcl import Client
from cmcl.demo.queries import QueryLoad
from cmcl.demo.stream import read_stream
from cmcl.stack import LocalStack, Ports
from deploy.live_prometheus import Prometheus, PrometheusError, Target
from workers.contract.model import ModelSpec, TrainingSpec
from workers.contract.policy import GatePolicy
from workers.contract.rollout import TrialPlan

ROOT = Path(__file__).parents[1]
STREAM = ROOT / "examples" / "stream"
MODEL = "dashboards"
# A part of an expression, and why it has no series in this run.
NOT_HERE = {
    "ray_node_gpus_utilization": "this machine has no GPU",
    "ray_node_gram_used": "this machine has no GPU",
    "trials_ended": "no trial ended",
    "attempts_lost": "no attempt was lost",
    "reconcile_errors": "no step failed",
    "webhook_deliveries": "nobody asked for webhooks",
    "key_snapshots": "no list of keys is signed here",
    'outcome!~"ok': "no call failed",
    "refused_versions": "no version was damaged",
    "refused_key_lists": "no list of keys is read here",
    "shadow_dropped": "every request was shadowed",
    "training_resumed_at": "no attempt went on from a checkpoint",
}
# What the database knows of models is asked for once a minute.
_SHADOW_SECONDS = 70.0
# Figures of a phase that is over within seconds are never scraped.
_SLOW = TrainingSpec(epochs=150)
_TRACE = "import ray; ray.init(logging_level='error'); print('PORT', ray.nodes()[0]['MetricsExportPort'])"


@dataclass(frozen=True)
class Expression:
    """Where it stands, and what it asks."""

    place: str
    text: str

    @property
    def excuse(self) -> str:
        """Why it may show nothing; empty if it may not."""
        reasons = (reason for part, reason in NOT_HERE.items() if part in self.text)
        return next(reasons, "")


def expressions() -> Iterator[Expression]:
    """Of all dashboards, with all jobs and models chosen, and the series that alerts look at."""
    for path in sorted((ROOT / "deploy" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                text = re.sub(r"\$\w+", ".*", target["expr"])
                # A filter of what is there anyway: zeros are fine here.
                text = re.sub(r" > 0$", "", text)
                yield Expression(f"{path.stem}: {panel['title']}", text)
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield Expression(f"alert: {rule['alert']}", rule["expr"])


def use(stack: LocalStack) -> None:
    """Do something of everything that is shown."""
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
            client.watch(accepted.job.id, lambda now: print(now.id, now.state))
        load = QueryLoad(host, port, MODEL, stream.probe_rows(32), rate=50)
        load.start()
        client.roll_back(MODEL)
        client.set_candidate(MODEL, 2, TrialPlan(shadow=1.0))
        for words in ("a shoe", "a wheel", "a bag"):
            _ask(stack, {"model": MODEL, "modality": "text", "input": [words]})
        _ask(stack, {"model": "nobody", "modality": "text", "input": ["nothing"]})
        time.sleep(_SHADOW_SECONDS)
        load.stop()


def _ask(stack: LocalStack, body: dict[str, object]) -> None:
    answer = httpx.post(f"{stack.embeddings_url}/v1/embeddings", json=body, timeout=60)
    print("asked for a text:", answer.status_code)


def judge(prometheus: Prometheus, seconds: float) -> list[str]:
    """A line for each expression that shows nothing without an excuse, or is not understood."""
    complaints = []
    for expression in expressions():
        try:
            series = len(prometheus.ask(expression.text, seconds))
        except PrometheusError as error:
            complaints.append(f"{expression.place}: {error}: {expression.text}")
            continue
        # An alert shows nothing while all is well; that it can is tested with promtool.
        quiet = expression.place.startswith("alert") or expression.excuse
        print(f"{series:4d}  {expression.place}  {'' if series else expression.excuse}")
        if series == 0 and not quiet:
            complaints.append(f"{expression.place} shows nothing: {expression.text}")
    return complaints


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
        complaints = check(Path(options.prometheus), Path(name))
    print("\n".join(complaints))
    print(json.dumps({"expressions": len(list(expressions())), "complaints": len(complaints)}))
    return 1 if complaints else 0


def check(program: Path, folder: Path) -> list[str]:
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
        started = time.time()
        port = Ports.free().service
        with Prometheus(program, folder / "prometheus", port, targets) as prometheus:
            use(stack)
            return judge(prometheus, time.time() - started)


if __name__ == "__main__":
    sys.exit(main())
