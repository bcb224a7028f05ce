"""One measurement: many running jobs, and the control plane that watches them, for a while."""

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select

from benchmarks.fleet.attempts import write_specs
from benchmarks.fleet.database import fill
from benchmarks.fleet.ports import RemoteLauncher, RemoteStore
from benchmarks.fleet.rounds import Rounds
from cmcl.storage.local import LocalStore
from service.app import Parts, create_context
from service.context import Context
from service.database.tables import events, jobs, versions
from service.jobs.reconciler import Reconciler
from service.jobs.workers import Workers
from service.settings import Settings
from service.states import JobState

Control = Literal["queue", "rounds"]
# How long to wait, after the last candidate, for all to become live.
_COOL_DOWN_SECONDS = 180.0


@dataclass(frozen=True)
class Fleet:
    """What is measured. Seconds: of a call of store and launcher, between two reports of an attempt, and in all.

    The first `warm_up` seconds do not count: the attempts' process starts, and their first progress is stored.
    """

    running: int = 1000
    call_seconds: float = 0.02
    heartbeat: float = 3.0
    seconds: float = 90.0
    # An attempt of a quarter of an hour.
    ends_per_second: float = 1.0
    warm_up: float = 15.0


def measure(fleet: Fleet, folder: Path, control: Control) -> dict[str, Any]:
    """Return the figures of one control plane."""
    store = RemoteStore(folder / "store", fleet.call_seconds)
    launcher = RemoteLauncher(fleet.call_seconds)
    context = _context(folder, store, launcher, control)
    local = LocalStore(folder / "store")
    write_specs(local, fleet.running)
    fill(context.database, fleet.running, datetime.now(UTC))
    with _controlled(context, control), _attempts(fleet, local, control) as attempts:
        time.sleep(fleet.warm_up)
        before = (store.count(), launcher.count(), time.process_time(), time.monotonic())
        ages = _progress_ages(context, fleet.seconds - fleet.warm_up)
        after = (store.count(), launcher.count(), time.process_time(), time.monotonic())
        written, _ = attempts.communicate()
        lines = [json.loads(line) for line in written.splitlines()]
        candidates = {line["model"]: line["at"] for line in lines if "model" in line}
        _wait_until_live(store, set(candidates))
    stages = _stages(context, candidates, store.live_at)
    context.close()
    stored, launched, cpu, elapsed = (
        late - early for early, late in zip(before, after, strict=True)
    )
    return {
        "running": fleet.running,
        "models": fleet.running,
        "replicas": 1,
        **_latencies(candidates, store.live_at),
        **stages,
        "progress_age_p99_s": _quantile(ages, 0.99),
        "store_requests_per_job_minute": round(60 * stored / elapsed / fleet.running, 3),
        "ray_requests_per_job_minute": round(60 * launched / elapsed / fleet.running, 3),
        "cores": round(cpu / elapsed, 3),
    }


def _context(
    folder: Path, store: RemoteStore, launcher: RemoteLauncher, control: Control
) -> Context:
    settings = Settings(
        database_url=f"sqlite:///{folder / 'cmcl.db'}", store_uri=store.uri, auth="off"
    )
    context = create_context(settings, Parts(store=store, launcher=launcher))
    # The rounds asked Ray about each attempt.
    return replace(context, launcher=launcher) if control == "rounds" else context


@contextmanager
def _controlled(context: Context, control: Control) -> Any:
    """Run the control plane beside the block."""
    stop = threading.Event()
    targets: list[Any]
    if control == "queue":
        reconciler = Reconciler(context)
        workers = Workers(reconciler.queue, reconciler.process, context.tuning.reconcile_workers)
        targets = [reconciler.run, reconciler.monitor.run, workers.run]
    else:
        targets = [Rounds(context).loop]
    threads = [threading.Thread(target=target, args=[stop], daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


@contextmanager
def _attempts(fleet: Fleet, store: LocalStore, control: Control) -> Any:
    """Run the attempts in another process beside the block."""
    options = {
        "root": str(store.root),
        "running": fleet.running,
        "heartbeat": fleet.heartbeat,
        "seconds": fleet.seconds,
        "ends_per_second": fleet.ends_per_second,
        "as_before": control == "rounds",
    }
    command = [sys.executable, "-m", "benchmarks.fleet.attempts", json.dumps(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _progress_ages(context: Context, seconds: float) -> list[float]:
    """Sample once a second how old the stored progress of each running job is."""
    ages: list[float] = []
    deadline = time.monotonic() + seconds
    query = select(jobs.c.progress["at"].as_string(), jobs.c.created_at).where(
        jobs.c.state == JobState.RUNNING
    )
    while time.monotonic() < deadline:
        with context.database.read() as connection:
            rows = connection.execute(query).all()
        now = datetime.now(UTC)
        for at, created_at in rows:
            shown = created_at if at is None else datetime.fromisoformat(at)
            ages.append((now - shown).total_seconds())
        time.sleep(1.0)
    return ages


def _wait_until_live(store: RemoteStore, models: set[str]) -> None:
    deadline = time.monotonic() + _COOL_DOWN_SECONDS
    while not models <= store.live_at.keys() and time.monotonic() < deadline:
        time.sleep(0.1)


def _latencies(
    candidates: dict[str, float], live_at: dict[str, float]
) -> dict[str, float | int | None]:
    """Of candidates, the time until live.json named them. One that is not live yet counts as infinitely late."""
    late = [live_at.get(model, math.inf) - at for model, at in candidates.items()]
    return {
        "candidates": len(candidates),
        "not_live": sum(map(math.isinf, late)),
        "candidate_to_live_p50_s": _quantile(late, 0.5),
        "candidate_to_live_p99_s": _quantile(late, 0.99),
    }


def _stages(
    context: Context, candidates: dict[str, float], live_at: dict[str, float]
) -> dict[str, float | None]:
    """Of candidates that are live, the time until each was seen, then published, then stored, then live."""
    seen = select(events.c.model, events.c.created_at).where(events.c.kind == "job.gating")
    published = select(versions.c.model, versions.c.created_at, versions.c.stored_at)
    with context.database.read() as connection:
        seen_at = dict(connection.execute(seen).all())
        rows = connection.execute(published).all()
    stages: dict[str, list[float]] = {"seen": [], "published": [], "stored": [], "live": []}
    for model, published_at, stored_at in rows:
        if model in live_at:
            moments = [each.timestamp() for each in (seen_at[model], published_at, stored_at)]
            times = [candidates[model], *moments, live_at[model]]
            for stage, (before, after) in zip(stages.values(), pairwise(times), strict=True):
                stage.append(after - before)
    return {
        f"{name}_{quantile}_s": _quantile(values, share)
        for name, values in stages.items()
        for quantile, share in (("p50", 0.5), ("p99", 0.99))
    }


def _quantile(values: Sequence[float], share: float) -> float | None:
    """Return None without values, or if it is infinite: JSON has no infinity."""
    if not values:
        return None
    found = sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]
    return None if math.isinf(found) else round(found, 3)
