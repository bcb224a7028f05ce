"""Sample data for pages and pictures: four models with a history, made through the API and by the reconciler.

Only what ranks would measure is invented (sample_figures.py).
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cmcl.contract.api.jobs import JobState
from cmcl.contract.dataset import RejectedRow
from cmcl.storage import layout
from service.database.queries.jobs import set_rejected
from service.database.rows import PreparedRows
from tests.browser.sample_figures import UPDATES, WIDTH, WIDTHS, recall_of, report_of, solved
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table
from tests.fakes.query_drift import report_query_drift
from tests.fakes.trainer import report_progress, train

_LOG = b"rank 0: read 12,430 rows a second\nrank 0: 408 of 780 updates, loss 0.83\n"


@dataclass(frozen=True)
class Stream:
    """A model and the datasets that it learns, as (name, pair)."""

    model: str
    datasets: tuple[tuple[str, str], ...]
    options: Mapping[str, object] = field(default_factory=dict)


SCENES = Stream(
    "street-scenes",
    (
        ("captions", "image text"),
        ("street-sounds", "audio text"),
        ("lidar", "depth image"),
        ("signs", "image text"),
        ("engines", "audio image"),
        ("night-captions", "image text"),
        ("rain-sounds", "audio text"),
        ("crossings", "depth text"),
    ),
    {"policy": "preserve"},
)
PHOTOS = Stream(
    "product-photos",
    (("catalogue", "image text"), ("reviews", "image text"), ("returns", "image text")),
)
BIRDS = Stream(
    "birdsong",
    (("meadow", "audio text"), ("forest", "audio image")),
    {"policy": "preserve"},
)
EMPTY = "touch"


@dataclass(frozen=True)
class Names:
    """Names that the addresses of pages contain. `reviewed` has the held job; of `moved_back` an older version is live."""

    running: str
    waiting: str
    held: str
    failed: str
    rejected: str
    dataset: str
    open_dataset: str
    collection: str = "streets"
    model: str = SCENES.model
    reviewed: str = PHOTOS.model
    moved_back: str = BIRDS.model
    empty: str = EMPTY


def build(plane: ControlPlane) -> Names:
    """Create models, versions, and jobs in several states. Takes some seconds."""
    for stream in (SCENES, PHOTOS, BIRDS):
        plane.create_model(stream.model, width=WIDTH, modalities=WIDTHS, **stream.options)
    plane.create_model(EMPTY, width=WIDTH, modalities={"text": 384, "touch": 96})
    learned = [_learn(plane, SCENES, index) for index in range(7)]
    for stream in (PHOTOS, BIRDS):
        for index in range(2):
            _learn(plane, stream, index)
    _branch(plane)
    names = Names(
        running=_run(plane),
        waiting=_post(plane, SCENES.model, "tunnels", "image text"),
        held=_hold(plane),
        failed=_fail(plane),
        rejected=_reject(plane),
        dataset=str(plane.job(learned[0]).dataset),
        open_dataset=_open_dataset(plane),
    )
    plane.store.put(layout.run_log(names.running, 1), _LOG)
    _query(plane)
    _move_back(plane)
    plane.clock.advance(41)
    return names


def _query(plane: ControlPlane) -> None:
    """Two hours of queries; images were like nothing that was learned for a while."""
    drawn = random.Random("queries")
    levels = {name: [drawn.uniform(0.2, 0.7) for _ in range(120)] for name in ("image", "text")}
    levels["image"][60:80] = [drawn.uniform(0.8, 2.4) for _ in range(20)]
    report_query_drift(plane.store, levels, SCENES.model)


def _post(plane: ControlPlane, model: str, name: str, pair: str) -> str:
    first, second = pair.split()
    drawn = random.Random(f"{model} {name}")
    table = feature_table(drawn.randrange(2_000, 20_000), prefix=name)
    return plane.post_dataset(
        name,
        model,
        pair={"first": first, "second": second},
        shards=[plane.shard(f"{model}-{name}", table)],
    )


def _learn(plane: ControlPlane, stream: Stream, index: int) -> str:
    """Learn the dataset of that number, counted from 0."""
    name, pair = stream.datasets[index]
    job = _post(plane, stream.model, name, pair)
    _train(plane, job)
    plane.run_to_end(job)
    assert plane.job(job).state == JobState.PUBLISHED, plane.job(job)
    plane.clock.advance(7_300)
    return job


def _train(plane: ControlPlane, job: str, drift: float = 0.02) -> None:
    """Bring the job to its candidate."""
    running = plane.tick_to(job, JobState.RUNNING)
    report_progress(plane.store, job, running.attempt, "reading", 0, {"at": plane.clock()})
    plane.tick()
    blank = train(plane.store, job, running.attempt, write=False)
    plane.clock.advance(95)
    *earlier, new = blank.learned
    new = new.model_copy(update={"recall": recall_of(new, new.version)})
    report = report_of((*earlier, new), drift)
    if blank.spec.policy == "improve":
        report = solved(report)
    changes = {"created_at": plane.clock(), "learned": (*earlier, new), "report": report}
    train(plane.store, job, running.attempt, changes=changes)


def _branch(plane: ControlPlane) -> None:
    body = {"name": f"{SCENES.model}-oslo", "version": 4}
    response = plane.client.post(f"/v1/models/{SCENES.model}/branch", json=body)
    assert response.status_code == 201, response.text


def _run(plane: ControlPlane) -> str:
    """A job in the middle of its training."""
    job = _post(plane, SCENES.model, *SCENES.datasets[7])
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    for updates in range(0, 420, 12):
        progress_of(plane, job, attempt, updates)
    return job


def progress_of(plane: ControlPlane, job: str, attempt: int, updates: int) -> None:
    """Report that many updates, and let the service read it."""
    figures: dict[str, float | datetime] = {
        "updates_total": UPDATES,
        "rows_done": 128 * updates,
        "rows_total": 128 * UPDATES,
        "loss": round(0.7 + 3.4 * 0.992**updates + 0.04 * (updates * 7 % 5), 4),
        "rows_per_second": 12_430.0,
        "gradient_norm": round(1.9 * 0.995**updates, 4),
        "removed_share": round(0.31 + 0.0002 * updates, 4),
        "drift": round(0.00006 * updates, 5),
        "eta_seconds": float((UPDATES - updates) // 10),
        "ranks": 2,
        "at": plane.clock(),
    }
    report_progress(plane.store, job, attempt, "training", updates, figures)
    plane.clock.advance(4)
    plane.tick()


def _hold(plane: ControlPlane) -> str:
    """A candidate that waits for a person."""
    _set_policy(plane, PHOTOS.model, manual_approval=True, max_drift=0.2)
    job = _post(plane, PHOTOS.model, *PHOTOS.datasets[2])
    _train(plane, job)
    plane.tick_to(job, JobState.HELD)
    return job


def _fail(plane: ControlPlane) -> str:
    """A job whose dataset cannot be read."""
    broken = plane.folder / "shards" / "broken.parquet"
    broken.write_bytes(b"not Parquet")
    job = plane.post_dataset(
        "broken",
        BIRDS.model,
        pair={"first": "audio", "second": "text"},
        shards=[{"uri": broken.resolve().as_uri()}],
    )
    plane.tick_to(job, JobState.FAILED)
    rows = tuple(
        RejectedRow(
            id=f"recording-of-{name}",
            file="https://data.example.org/recordings/of-november/part-00017.jsonl",
            row=row,
            place=f"part-00017.jsonl line {row + 1}, recording-of-{name}.flac",
            reason=f"{name}.flac is truncated: 3 of 48,000 samples can be read",
        )
        for row, name in enumerate(("00000201", "emberiza-schoeniclus-0f3a9c2e7b41d658"))
    )
    with plane.context.database.write() as connection:
        set_rejected(
            connection, job, PreparedRows(rejected_rows=len(rows), rejected=rows, needed_share=0.02)
        )
    return job


def _reject(plane: ControlPlane) -> str:
    """A job whose candidate moved earlier scores too far."""
    _set_policy(plane, BIRDS.model, max_drift=0.2)
    job = _post(plane, BIRDS.model, "city-recordings-of-march", "audio text")
    _train(plane, job, drift=0.3)
    plane.tick_to(job, JobState.REJECTED)
    return job


def _open_dataset(plane: ControlPlane) -> str:
    """A dataset to which files can be added."""
    body = plane.dataset_body("bridges", SCENES.model, sealed=False)
    response = plane.client.post("/v1/datasets", json=body)
    assert response.status_code == 201, response.text
    dataset: str = response.json()["dataset"]["id"]
    return dataset


def _set_policy(plane: ControlPlane, model: str, **rules: object) -> None:
    response = plane.client.put(f"/v1/models/{model}/gate", json=rules)
    assert response.status_code == 200, response.text


def _move_back(plane: ControlPlane) -> None:
    back = {"version": 1, "reason": "version 2 is slower on short clips"}
    assert plane.client.put(f"/v1/models/{BIRDS.model}/live", json=back).status_code == 200
    plane.tick(4)
