"""Every contract model: bounds, unknown fields rejected by name, unchanged by a JSON round trip."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cmcl.contract.dataset import DatasetManifest, Shard, ShardRef
from cmcl.contract.job import JobSpec, Progress, submission_id
from cmcl.contract.modality import FileEntry, ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import (
    Drift,
    LearnedDataset,
    LivePointer,
    Protection,
    Recall,
    VersionManifest,
    VersionReport,
    datasets_to_measure,
    datasets_to_merge,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DIGEST = "0123456789abcdef" * 4
PAIR = ModalityPair(first="image", second="text")
OTHER_PAIR = ModalityPair(first="image", second="audio")
SPEC = ModelSpec(modalities={"image": 1024, "text": 768})
SHARD = Shard(uri="s3://bucket/a.parquet", sha256=DIGEST, bytes=100, rows=10)
DATASET = DatasetManifest(dataset="d-1", model="scenes", name="first", pair=PAIR, shards=(SHARD,))
LEARNED = LearnedDataset(
    dataset="d-1",
    name="first",
    pair=PAIR,
    rows=10,
    version=1,
    moments=FileEntry(sha256=DIGEST, bytes=9),
    shard_digests=(DIGEST,),
)
REPORT = VersionReport(
    final_loss=0.25,
    updates=10,
    ranks=2,
    seconds={"training": 1.5},
    protection={
        "image": Protection(
            input_directions=3,
            input_width=1024,
            output_directions=2,
            output_width=256,
            blocked_share=0.5,
        )
    },
    drift={"d-0": Drift(since_learned=0.1, against_parent=0.05)},
    evaluation={"d-1": Recall(rows=10, at_1=0.5, at_5=0.75, at_10=1.0)},
)
MODELS: list[BaseModel] = [
    ShardRef(uri="s3://bucket/a.parquet"),
    SHARD,
    DATASET,
    SPEC,
    JobSpec(
        job="j-1", attempt=1, model="scenes", version=1, parent=None, spec=SPEC, dataset=DATASET
    ),
    Progress(phase="training", updates_done=3, updates_total=10, loss=0.5, at=NOW),
    VersionManifest(
        model="scenes",
        version=1,
        job="j-1",
        attempt=1,
        dataset="d-1",
        spec=SPEC,
        code_version="0.1.0",
        created_at=NOW,
        files={"heads.safetensors": FileEntry(sha256=DIGEST, bytes=1)},
        learned=(LEARNED,),
        report=REPORT,
    ),
    LivePointer(generation=1, version=1),
]
# Read by other releases than the one that wrote them, so these two tolerate new fields.
TOLERANT = (Progress, LivePointer)


def test_an_unknown_field_deep_inside_a_spec_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"training\.learning_rat"):
        ModelSpec.model_validate(
            {"modalities": {"image": 4, "text": 3}, "training": {"learning_rat": 1}}
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy": "improve", "method": "vanilla"}, "a model has one of the two"),
        ({"policy": None}, "a model has one of the two"),
        ({"method": "vanilla", "max_drift": 0.5}, "keeps no bound; it needs a policy"),
    ],
)
def test_a_model_has_a_policy_or_a_method(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSpec.model_validate({"modalities": {"image": 4, "text": 3}, **given})


def test_the_policy_is_improve_unless_another_or_a_method_is_given() -> None:
    widths = {"image": 4, "text": 3}
    chosen = [{}, {"policy": "preserve"}, {"method": "vanilla"}]
    specs = [ModelSpec.model_validate({"modalities": widths, **each}) for each in chosen]
    assert [spec.policy for spec in specs] == ["improve", "preserve", None]
    assert [spec.drift_bound for spec in specs] == [None, 0.5, None]


@pytest.mark.parametrize("kind", TOLERANT)
def test_what_other_releases_write_may_have_more_fields(kind: type[BaseModel]) -> None:
    (model,) = (model for model in MODELS if isinstance(model, kind))
    assert kind.model_validate({**model.model_dump(), "new": 1}) == model


def test_a_report_of_measured_datasets_can_be_read_by_the_release_before() -> None:
    """Its reports were without this field, and it rejects unknown fields."""
    assert "not_evaluated" not in REPORT.model_dump_json()
    incomplete = REPORT.model_copy(update={"not_evaluated": {"d-0": "shard 0 is missing"}})
    assert VersionReport.model_validate_json(incomplete.model_dump_json()) == incomplete


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True),
        st.integers(1, 16384),
        min_size=2,
        max_size=6,
    ),
    st.integers(2, 8192),
    st.floats(0, 1, exclude_min=True),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=50)
def test_a_spec_within_its_bounds_survives_json_to_the_last_bit(
    modalities: dict[str, int], width: int, kept_energy: float, seed: int
) -> None:
    if width * sum(modalities.values()) > 2**30:
        return
    spec = ModelSpec(
        width=width,
        modalities=modalities,
        kept_energy=kept_energy,
        seed=seed,
    )
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def refused(field: str, value: object) -> None:
    body: dict[str, object] = {"modalities": {"image": 4, "text": 3}}
    group, _, name = field.rpartition(".")
    body |= {group: {name: value}} if group else {name: value}
    with pytest.raises(ValidationError) as caught:
        ModelSpec.model_validate(body)
    assert caught.value.errors()[0]["loc"][: field.count(".") + 1] == tuple(field.split("."))


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "width": [0, 1, 8193, "wide", None, 1.5],
        "seed": [-1, 2**31],
        "method": ["", "Vanilla", "os:system", "x" * 65],
        "modalities": [
            {},
            {"image": 4},
            {"image": 0, "text": 3},
            {"image": 16385, "text": 3},
            {"Image": 4, "text": 3},
            {f"m{number}": 1 for number in range(65)},
            ["image", "text"],
        ],
        "training.epochs": [0, 1001],
        "training.batch_size": [1, 65537],
        "training.learning_rate": [0, -1, 1.1, float("nan"), float("inf")],
        "training.temperature": [0, 101, float("nan")],
        "kept_energy": [0, 1.01, float("nan")],
        "max_drift": [0, -1, float("inf"), float("nan")],
    }.items(),
)
def test_a_value_out_of_bounds_is_refused_under_its_field(field: str, values: list[object]) -> None:
    for value in values:
        refused(field, value)


def test_the_size_of_all_heads_together_is_bounded() -> None:
    largest = {f"m{number}": 16384 for number in range(8)}
    assert ModelSpec(width=8192, modalities=largest, lift=0).width == 8192
    with pytest.raises(ValidationError, match=f"{2**30 + 8192} entries.*maximum is {2**30}"):
        ModelSpec(width=8192, modalities={**largest, "one": 1}, lift=0)


def test_a_dataset_has_shards_and_as_many_rows_as_these() -> None:
    two = DATASET.model_copy(update={"shards": (SHARD, SHARD)})
    assert (DATASET.rows, two.rows) == (10, 20)
    with pytest.raises(ValidationError, match="shards"):
        DatasetManifest.model_validate({**DATASET.model_dump(), "shards": ()})


def test_every_attempt_has_a_unique_ray_submission_id() -> None:
    ids = {submission_id(job, attempt) for job in ("j-1", "j-11") for attempt in (1, 11)}
    assert ids == {"j-1-a1", "j-1-a11", "j-11-a1", "j-11-a11"}


def test_a_dataset_that_both_have_is_merged_once_however_its_sums_were_rounded() -> None:
    other = FileEntry(sha256=DIGEST[::-1], bytes=9)
    posted_again = LEARNED.model_copy(update={"dataset": "d-2", "moments": other})
    assert datasets_to_merge([LEARNED], [posted_again]) == ()
    inherited = LEARNED.model_copy(update={"moments": other, "shard_digests": (DIGEST[::-1],)})
    assert datasets_to_merge([LEARNED], [inherited]) == ()
    for different in ({"shard_digests": (DIGEST[::-1],)}, {"rows": 11}, {"pair": OTHER_PAIR}):
        new = posted_again.model_copy(update=different)
        assert datasets_to_merge([LEARNED], [new]) == (new,)


def _measured(version: int, spec: ModelSpec = SPEC, *, measures_all: bool = False) -> set[str]:
    """What the job of a version measures that has one dataset of each version before it."""
    earlier = tuple(
        LEARNED.model_copy(update={"dataset": f"d-{each}"}) for each in range(1, version)
    )
    job = JobSpec(
        job="j",
        attempt=1,
        model="scenes",
        version=version,
        parent=version - 1 or None,
        spec=spec,
        dataset=DATASET,
        measures_all=measures_all,
    )
    return {each.dataset for each in datasets_to_measure(job, earlier)}


def test_without_a_bound_a_version_measures_sixteen_datasets_at_most_and_each_in_turn() -> None:
    versions = {version: _measured(version) for version in range(1, 100)}
    for version, measured in versions.items():
        assert min(8, version - 1) <= len(measured) <= 16
    assert len(versions[17]) == 16
    # Up to 128 datasets take 8 turns, and 4 before: in 12 versions each had its turn.
    for version in range(1, 88):
        following = (versions[each] for each in range(version, version + 12))
        assert {f"d-{each}" for each in range(1, version)} <= set().union(*following)


def test_a_bound_has_every_earlier_dataset_measured() -> None:
    everything = {f"d-{each}" for each in range(1, 100)}
    assert _measured(100, measures_all=True) == everything
    for bounded in (
        ModelSpec(modalities=SPEC.modalities, policy="preserve"),
        ModelSpec(modalities=SPEC.modalities, max_drift=0.5),
    ):
        assert _measured(100, bounded) == everything
