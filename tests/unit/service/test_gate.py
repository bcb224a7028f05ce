"""Required contents of a candidate."""

from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.errors import InvalidVersion
from cmcl.contract.gate import Gate
from cmcl.contract.job import JobSpec
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from service.jobs.gate import check_answers, judge
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train

Asked = tuple[JobSpec, VersionManifest, VersionManifest]


@pytest.fixture
def asked(plane: ControlPlane) -> Asked:
    """The job spec, the parent's manifest, and a valid candidate."""
    plane.run_to_end(plane.post_dataset("one"))
    job = plane.post_dataset("two")
    plane.tick_to(job, JobState.RUNNING)
    candidate = train(plane.store, job, 1)
    spec = JobSpec.model_validate_json(plane.store.read(layout.run_spec(job, 1)))
    return spec, plane.versions()[0].manifest, candidate


def test_a_truthful_candidate_passes(asked: Asked) -> None:
    spec, parent, candidate = asked
    check_answers(spec, parent.learned, candidate)
    assert judge(Gate(), candidate) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job", "job-000000000000"),
        ("attempt", 2),
        ("model", "sounds"),
        ("version", 3),
        ("parent", None),
        ("dataset", "ds-000000000000"),
        ("spec", ModelSpec(modalities={"image": 4, "text": 3})),
    ],
)
def test_an_answer_to_another_question_is_refused(asked: Asked, field: str, value: object) -> None:
    spec, parent, candidate = asked
    with pytest.raises(InvalidVersion, match=f"the candidate's {field} is"):
        check_answers(spec, parent.learned, candidate.model_copy(update={field: value}))


def test_a_lineage_without_an_earlier_dataset_is_rejected(asked: Asked) -> None:
    spec, parent, candidate = asked
    forgetful = candidate.model_copy(update={"learned": candidate.learned[1:]})
    with pytest.raises(InvalidVersion, match="learned"):
        check_answers(spec, parent.learned, forgetful)


def test_unexpected_shards_are_rejected(asked: Asked) -> None:
    spec, parent, candidate = asked
    line = candidate.learned[-1].model_copy(update={"shard_digests": ("0" * 64,)})
    other = candidate.model_copy(update={"learned": (*candidate.learned[:-1], line)})
    with pytest.raises(InvalidVersion, match="learned shards"):
        check_answers(spec, parent.learned, other)


def test_a_dataset_without_certificate_is_refused(asked: Asked) -> None:
    spec, parent, candidate = asked
    report = candidate.report.model_copy(update={"drift": {}})
    with pytest.raises(InvalidVersion, match="no certificate"):
        check_answers(spec, parent.learned, candidate.model_copy(update={"report": report}))


def test_drift_at_the_bound_is_permitted(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model(max_drift=0.5)
    plane.run_to_end(plane.post_dataset("one"))
    assert plane.run_to_end(plane.post_dataset("two"), drift=0.5).state == JobState.PUBLISHED
    plane.close()


@pytest.mark.parametrize("spec", [{"method": "vanilla"}, {"policy": "improve"}])
def test_without_a_bound_scores_may_drift(tmp_path: Path, spec: dict[str, Any]) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model(**spec)
    plane.run_to_end(plane.post_dataset("one"))
    assert plane.run_to_end(plane.post_dataset("two"), drift=7.0).state == JobState.PUBLISHED
    plane.close()
