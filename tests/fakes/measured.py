"""Versions with measurements, trained by the fake trainer."""

from collections.abc import Mapping
from typing import Any

from cmcl.contract.api.jobs import JobState
from cmcl.contract.version import Drift, HeadCapacity, Quality, Recall, VersionManifest
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train


def recall(at_1: float, at_10: float | None = None) -> Recall:
    """A recall of ten rows, of which some have equal items."""
    top = at_1 if at_10 is None else at_10
    return Recall(rows=10, at_1=at_1, at_5=top, at_10=top, own_at_1=at_1 / 2, own_at_10=top / 2)


def head(free_share: float) -> HeadCapacity:
    """A head of which that share is free."""
    return HeadCapacity(
        free_share=free_share,
        input_directions=1,
        input_width=5,
        output_directions=2,
        output_width=8,
    )


def write_measured(
    plane: ControlPlane,
    job: str,
    recalls: Mapping[str, float] | None = None,
    drifts: Mapping[str, float] | None = None,
    losses: Mapping[str, tuple[float, float | None]] | None = None,
    free: Mapping[str, float] | None = None,
    *,
    changes: Mapping[str, object] | None = None,
) -> VersionManifest:
    """Write a candidate of a posted job; the figures are by name of the dataset, or by modality.

    `losses` are (now, best). `changes` replace fields of the report.
    """
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    made = train(plane.store, job, attempt, write=False)
    ids = {line.name: line.dataset for line in made.learned}
    drift = {ids[name]: value for name, value in (drifts or {}).items()}
    learned = made.learned
    *earlier, own = learned
    # A version that unlearns has no dataset of its own.
    if own.version == made.version:
        found = recall(recalls[own.name]) if recalls and own.name in recalls else None
        learned = (*earlier, own.model_copy(update={"recall": found}))
    report = made.report.model_copy(
        update={
            "evaluation": {ids[name]: recall(value) for name, value in (recalls or {}).items()},
            "drift": {
                dataset: Drift(since_learned=drift.get(dataset, 0.1), against_parent=0.05)
                for dataset in made.report.drift
            },
            "quality": {
                ids[name]: Quality(now=now, best=best, norm_change={})
                for name, (now, best) in (losses or {}).items()
            },
            "capacity": {modality: head(share) for modality, share in (free or {}).items()},
            **(changes or {}),
        }
    )
    return train(plane.store, job, attempt, changes={"report": report, "learned": learned})


def publish_measured(
    plane: ControlPlane,
    name: str,
    model: str = "scenes",
    pair: tuple[str, str] = ("image", "text"),
    **figures: Any,
) -> str:
    """Publish a version with these figures; return its dataset."""
    job = plane.post_dataset(name, model, pair={"first": pair[0], "second": pair[1]})
    dataset = str(write_measured(plane, job, **figures).dataset)
    plane.run_to_end(job)
    return dataset
