"""Datasets that are measured and never learned: in the report of a version, and in nothing that judges it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from cmcl.contract.dataset import DatasetManifest, EvaluationDataset
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.job import JobSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import EvaluationResult, MeasuredDataset, VersionManifest
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import publish_manifest, read_candidate
from tests.fakes.latent_pairs import WIDTHS, write_latent_pairs
from tests.fakes.preparer import identity
from workers.train.job import train_dataset

SPEC = ModelSpec.model_validate(
    {"width": 6, "modalities": WIDTHS, "training": {"batch_size": 32}, "lift": 0}
)
IMAGE_TEXT = ModalityPair(first="image", second="text")
DEPTH_TEXT = ModalityPair(first="depth", second="text")
IMAGE_DEPTH = ModalityPair(first="image", second="depth")
Encoders = Mapping[str, EncoderIdentity]


@dataclass
class Bench:
    """A store, in which datasets become versions of a model."""

    folder: Path
    spec: ModelSpec = SPEC
    store: LocalStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = LocalStore(self.folder / "store")

    def dataset(
        self,
        name: str,
        pair: ModalityPair,
        encoders: Encoders | None = None,
        *,
        evaluate_only: bool = False,
    ) -> DatasetManifest:
        """A dataset whose manifest is in the store."""
        seed = sum(name.encode())
        train = write_latent_pairs(self.folder / f"{name}.parquet", pair, 200, seed)
        held = write_latent_pairs(self.folder / f"{name}-held.parquet", pair, 100, 7000 + seed)
        manifest = DatasetManifest(
            dataset=f"ds-{name}",
            model="m",
            name=name,
            pair=pair,
            shards=() if evaluate_only else (train,),
            evaluation_shards=(held,),
            evaluate_only=evaluate_only,
            encoders=dict(encoders or {}),
        )
        key = layout.dataset_manifest(manifest.dataset)
        self.store.put(key, manifest.model_dump_json().encode())
        return manifest

    def measured(
        self, name: str, pair: ModalityPair, encoders: Encoders | None = None
    ) -> EvaluationDataset:
        """A dataset that is measured only."""
        self.dataset(name, pair, encoders, evaluate_only=True)
        return EvaluationDataset(dataset=f"ds-{name}", name=name, pair=pair)

    def learn(
        self,
        version: int,
        dataset: DatasetManifest,
        *measured: EvaluationDataset,
        job: str | None = None,
    ) -> VersionManifest:
        """Learn a dataset, and return the candidate, published unless the job has a name of its own."""
        spec = JobSpec(
            job=job or f"job-{version}",
            attempt=1,
            model="m",
            version=version,
            parent=version - 1 or None,
            spec=self.spec,
            dataset=dataset,
            evaluation_only=measured,
        )
        self.store.put(layout.run_spec(spec.job, 1), spec.model_dump_json().encode())
        train_dataset(self.store.uri, spec.job, 1, torch.device("cpu"))
        candidate = read_candidate(self.store, spec.job, 1)
        if job is None:
            publish_manifest(self.store, candidate)
        return candidate


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def only(manifest: VersionManifest) -> MeasuredDataset:
    (found,) = manifest.report.evaluation_only
    return found


def test_a_pair_that_was_never_trained_is_measured_once_both_sides_are_learned(
    bench: Bench,
) -> None:
    views = bench.measured("views", IMAGE_DEPTH)
    first = bench.learn(1, bench.dataset("one", IMAGE_TEXT), views)
    second = bench.learn(2, bench.dataset("two", DEPTH_TEXT), views)
    assert (only(first).recall, only(first).note) == (None, "version 1 has not learned 'depth'")
    measured = only(second)
    assert (measured.dataset, measured.pair, measured.note) == ("ds-views", IMAGE_DEPTH, None)
    assert measured.recall is not None
    assert measured.recall.rows == 100
    # One row of 100 by chance. Image and depth have met through text alone.
    assert measured.recall.at_1 > 0.8


def test_what_is_measured_only_changes_no_file_and_judges_nothing(bench: Bench) -> None:
    dataset = bench.dataset("one", IMAGE_TEXT)
    without = bench.learn(1, dataset)
    again = bench.learn(1, dataset, bench.measured("more", IMAGE_TEXT), job="job-again")
    assert only(again).recall is not None
    assert again.files == without.files
    assert again.learned == without.learned
    same: dict[str, object] = {"seconds": {}, "evaluation_only": ()}
    assert again.report.model_copy(update=same) == without.report.model_copy(update=same)


def test_a_modality_may_be_added_after_a_version(bench: Bench) -> None:
    bench.spec = SPEC.model_copy(
        update={"modalities": {name: SPEC.modalities[name] for name in ("image", "text")}}
    )
    first = bench.learn(1, bench.dataset("one", IMAGE_TEXT))
    assert set(first.spec.modalities) == {"image", "text"}
    bench.spec = SPEC
    views = bench.measured("views", IMAGE_DEPTH)
    measured = only(bench.learn(2, bench.dataset("two", DEPTH_TEXT), views))
    assert measured.recall is not None
    assert measured.recall.at_1 > 0.8


def test_pairs_that_no_dataset_connects_are_marked_as_chance(bench: Bench) -> None:
    views = bench.measured("views", IMAGE_DEPTH)
    bench.learn(1, bench.dataset("one", IMAGE_TEXT))
    apart = ModalityPair(first="depth", second="audio")
    measured = only(bench.learn(2, bench.dataset("two", apart), views))
    assert measured.recall is not None
    assert measured.recall.at_1 < 0.2
    assert str(measured.note).startswith("no learned datasets connect 'image' with 'depth'")


def test_a_job_of_its_own_measures_a_version_and_makes_none(bench: Bench) -> None:
    first = bench.learn(1, bench.dataset("one", IMAGE_TEXT))
    dataset = bench.dataset("more", IMAGE_TEXT, evaluate_only=True)
    spec = JobSpec(
        job="job-more",
        kind="evaluate",
        attempt=1,
        model="m",
        version=1,
        parent=1,
        spec=SPEC,
        dataset=dataset,
    )
    bench.store.put(layout.run_spec("job-more", 1), spec.model_dump_json().encode())
    for _ in range(2):
        # The second time it finds its result.
        train_dataset(bench.store.uri, "job-more", 1, torch.device("cpu"))
    result = read_document(bench.store, layout.run_evaluation("job-more", 1), EvaluationResult)
    assert (result.version, result.note) == (1, None)
    assert result.recall is not None
    assert result.recall.rows == 100
    measured = bench.measured("more", IMAGE_TEXT)
    again = only(bench.learn(1, bench.dataset("one", IMAGE_TEXT), measured, job="job-again"))
    assert result.recall == again.recall
    assert first.learned[-1].dataset == "ds-one"
    assert list(bench.store.keys(layout.run_candidate("job-more", 1))) == []


def test_features_of_another_encoder_are_not_measured(bench: Bench) -> None:
    other, known = (
        {"image": identity(name, width=WIDTHS["image"])} for name in ("clip-2", "clip-1")
    )
    more = bench.measured("more", IMAGE_TEXT, other)
    measured = only(bench.learn(1, bench.dataset("one", IMAGE_TEXT, known), more))
    assert measured.recall is None
    assert "'image' are not of the encoder that computed the model's" in str(measured.note)


def test_a_dataset_that_was_deleted_meanwhile_does_not_fail_the_training(bench: Bench) -> None:
    gone = EvaluationDataset(dataset="ds-gone", name="gone", pair=IMAGE_TEXT)
    measured = only(bench.learn(1, bench.dataset("one", IMAGE_TEXT), gone))
    assert measured.recall is None
    assert "ds-gone" in str(measured.note)
