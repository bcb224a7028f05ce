"""Jobs that read no rows: a version without a dataset is the one that never saw it, and merged branches are one model.

Scores of two versions are compared over all pairs of features: the heads themselves may be turned.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.errors import CannotCombine
from cmcl.contract.job import Failure, JobSpec, VersionRef
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import check_complete, publish_manifest, read_candidate, read_version
from tests.fakes.feature_shards import write_pair_shard
from workers.methods import improve
from workers.model.heads import ModalityHeads, initial_heads
from workers.train.job import train_dataset
from workers.train.versions import read_heads, read_memory

WIDTHS = {"audio": 14, "depth": 12, "image": 20, "text": 11}
PAIRS = {
    "a": ("image", "text"),
    "b": ("text", "depth"),
    "c": ("depth", "image"),
    "d": ("audio", "image"),
    "e": ("text", "image"),
}
SPEC = ModelSpec(width=12, modalities=WIDTHS, lift=12, training=TrainingSpec(batch_size=16))
# The default lift, of eight times the features: 99 to 180 of them, and 120 rows. With few numbers for many directions
# the polish has four times as many updates, so that few tests use it.
LIFTED = ModelSpec(width=8, modalities=WIDTHS, training=TrainingSpec(batch_size=16))
EXACT = 1e-6


@dataclass(frozen=True)
class Bench:
    """A store and a folder of datasets, which models of any name learn."""

    store: LocalStore
    folder: Path
    spec: ModelSpec = SPEC
    # Added to all numbers of all rows.
    constant: float = 0.0

    def _dataset(self, name: str, model: str) -> DatasetManifest:
        """Rows whose two sides come from the same six numbers; each dataset has its own means."""
        pair = PAIRS[name]
        generator = np.random.default_rng(ord(name))
        shared = generator.normal(size=(160, 6))
        sides = []
        for modality in pair:
            width = self.spec.widths[modality]
            mixing = np.random.default_rng(width).normal(size=(6, width))
            noise = generator.normal(size=(160, width))
            mean = generator.normal(size=width)
            rows = shared @ mixing + 0.5 * noise + mean + self.constant
            sides.append(rows.astype(np.float32))
        training, held_out = (
            write_pair_shard(
                self.folder / f"{name}-{part}.parquet", (sides[0][rows], sides[1][rows])
            )
            for part, rows in (("train", slice(120)), ("held-out", slice(120, 160)))
        )
        manifest = DatasetManifest(
            dataset=f"ds-{name}",
            model=model,
            name=name,
            pair=ModalityPair(first=pair[0], second=pair[1]),
            shards=(training,),
            evaluation_shards=(held_out,),
        )
        key = layout.dataset_manifest(manifest.dataset)
        self.store.put(key, manifest.model_dump_json().encode())
        return manifest

    def learn(self, model: str, names: str, start: int = 0) -> VersionManifest:
        """One version for each of the datasets."""
        for version, name in enumerate(names, start=start + 1):
            found = self.run(model, version, dataset=self._dataset(name, model))
        return found

    def run(self, model: str, version: int, **what: object) -> VersionManifest:
        """Run a job from the version before to a published one."""
        kind = "unlearn" if "unlearns" in what else "merge" if "merges" in what else "learn"
        job = JobSpec.model_validate(
            {
                "job": f"job-{model}-{version}",
                "attempt": 1,
                "kind": kind,
                "model": model,
                "version": version,
                "parent": version - 1 or None,
                "spec": self.spec,
                **what,
            }
        )
        self.store.put(layout.run_spec(job.job, 1), job.model_dump_json().encode())
        train_dataset(self.store.uri, job.job, 1, torch.device("cpu"))
        found = read_candidate(self.store, job.job, 1)
        check_complete(self.store, found)
        publish_manifest(self.store, found)
        return found

    def branch(self, model: str, name: str, version: int) -> None:
        """Manifests that name what the other model has, as the control plane makes them."""
        for number in range(1, version + 1):
            manifest = read_version(self.store, model, number)
            publish_manifest(self.store, manifest.as_in_branch(name))

    def heads(self, manifest: VersionManifest) -> ModalityHeads:
        return read_heads(self.store, manifest)


@pytest.fixture(scope="module", autouse=True)
def _short_polish() -> Iterator[None]:
    """A tenth of the updates: what is exact after some of them is exact after all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(improve, "_UPDATES", improve._UPDATES // 10)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Model m has learned a, b, c, d, e."""
    folder = tmp_path_factory.mktemp("base")
    bench = Bench(LocalStore(folder / "store"), folder)
    bench.learn("m", "abcde")
    return bench


@pytest.fixture
def bench(base: Bench, tmp_path: Path) -> Bench:
    """A copy of it."""
    store = LocalStore(Path(shutil.copytree(base.folder / "store", tmp_path / "store")))
    return Bench(store, base.folder)


def scores(heads: ModalityHeads, spec: ModelSpec = SPEC) -> dict[tuple[str, str], torch.Tensor]:
    """Cosines of embeddings between all pairs of modalities that were learned."""
    generator = torch.Generator().manual_seed(0)
    widths = dict(sorted(spec.widths.items()))
    features = {name: torch.randn(50, widths[name], generator=generator) for name in widths}
    start = initial_heads(spec).weights
    learned = [name for name in widths if not torch.equal(heads.weights[name], start[name])]
    embedded = {name: heads.embed(name, features[name]) for name in learned}
    return {(one, two): embedded[one] @ embedded[two].mT for one in embedded for two in embedded}


def assert_same_scores(one: ModalityHeads, other: ModalityHeads, spec: ModelSpec = SPEC) -> None:
    ours, theirs = scores(one, spec), scores(other, spec)
    assert ours.keys() == theirs.keys()
    for pair, found in ours.items():
        torch.testing.assert_close(found, theirs[pair], rtol=0, atol=EXACT)


def names(manifest: VersionManifest) -> str:
    return "".join(line.name for line in manifest.learned)


# --- Unlearn ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["a", "b", "c", "d", "e"])
def test_unlearned_equals_never_seen(bench: Bench, gone: str) -> None:
    found = bench.run("m", 6, unlearns=f"ds-{gone}")
    never = bench.learn("never", "abcde".replace(gone, ""))
    assert_same_scores(bench.heads(found), bench.heads(never))
    assert names(found) == names(never)
    ours, theirs = (read_memory(bench.store, each) for each in (found, never))
    assert ours.ridges == theirs.ridges
    assert ours.significant == theirs.significant
    assert ours.datasets == theirs.datasets
    for pair, sums in theirs.centred.items():
        assert torch.equal(ours.centred[pair].cross_FG, sums.cross_FG)
        assert torch.equal(ours.centred[pair].first_FF, sums.first_FF)
        assert torch.equal(ours.centred[pair].second_means_DG, sums.second_means_DG)


def test_what_is_learned_after_unlearning_is_what_it_would_have_been(bench: Bench) -> None:
    """The parent's heads have seen the dataset; later ones depend on them by no more than a turn."""
    bench.learn("short", "abc")
    bench.run("short", 4, unlearns="ds-c")
    later = bench.learn("short", "de", start=4)
    never = bench.learn("never", "abde")
    assert_same_scores(bench.heads(later), bench.heads(never))


def test_a_version_says_what_it_unlearned_and_measures_what_remains(bench: Bench) -> None:
    found = bench.run("m", 6, unlearns="ds-c")
    assert (found.kind, found.dataset, found.new_line) == ("unlearn", None, None)
    assert found.unlearned is not None
    assert (found.unlearned.dataset, found.unlearned.version) == ("ds-c", 3)
    remaining = {"ds-a", "ds-b", "ds-d", "ds-e"}
    assert set(found.report.drift) == set(found.report.evaluation) == remaining
    assert set(found.report.score_errors) == remaining
    assert found.report.quality["ds-a"].now < -0.5
    # Later versions are measured against one that never saw it, so those that did can be deleted.
    assert {line.name: line.reference for line in found.learned} == {
        "a": None,
        "b": None,
        "d": 6,
        "e": 6,
    }
    later = bench.learn("m", "c", start=6)
    assert later.report.drift["ds-e"].since_learned == later.report.drift["ds-e"].against_parent


def test_a_modality_without_a_dataset_is_as_before_its_first_one(bench: Bench) -> None:
    found = bench.run("m", 6, unlearns="ds-d")
    weights = bench.heads(found).weights
    assert torch.equal(weights["audio"], initial_heads(SPEC).weights["audio"])
    assert not torch.equal(weights["image"], initial_heads(SPEC).weights["image"])


def test_a_dataset_that_centred_a_narrow_cone_leaves_only_that_constant(tmp_path: Path) -> None:
    """Heads are those of a model that never saw it and centres as this one does."""
    cone = Bench(LocalStore(tmp_path / "store"), tmp_path, constant=20.0)
    cone.learn("m", "abe")
    found = cone.heads(cone.run("m", 4, unlearns="ds-b"))
    assert_same_scores(found, cone.heads(cone.learn("never", "ae")))
    assert "depth" not in found.conditioning
    cone.learn("m", "c", start=4)
    then = cone.heads(cone.run("m", 6, unlearns="ds-a"))
    before = cone.heads(read_version(cone.store, "m", 1))
    assert then.conditioning["text"].equals(before.conditioning["text"])


def test_what_was_never_learned_is_refused(bench: Bench) -> None:
    with pytest.raises(CannotCombine, match="has not learned"):
        bench.run("m", 6, unlearns="ds-x")
    failure = read_document(bench.store, layout.run_failure("job-m-6", 1), Failure)
    assert "has not learned" in failure.message


def test_the_only_dataset_is_not_unlearned(bench: Bench) -> None:
    bench.learn("one", "a")
    with pytest.raises(CannotCombine, match="the only one"):
        bench.run("one", 2, unlearns="ds-a")


# --- Merge --------------------------------------------------------------------------------------


def branches(bench: Bench, ours: str, theirs: str, shared: int = 2) -> VersionRef:
    """Branch version `shared` of model m into the models one and two, which then learn separately."""
    for model, own in (("one", ours), ("two", theirs)):
        bench.branch("m", model, shared)
        bench.learn(model, own, start=shared)
    return VersionRef(model="two", version=shared + len(theirs))


@pytest.mark.parametrize(("ours", "theirs"), [("c", "de"), ("d", "ce"), ("e", "dc")])
def test_merged_equals_the_union(bench: Bench, ours: str, theirs: str) -> None:
    other = branches(bench, ours, theirs)
    merged = bench.run("one", 3 + len(ours), merges=other)
    assert sorted(names(merged)) == list("abcde")
    union = read_version(bench.store, "m", 5)
    assert_same_scores(bench.heads(merged), bench.heads(union))


def test_a_dataset_of_both_counts_once(bench: Bench) -> None:
    other = branches(bench, "ce", "cd")
    merged = bench.run("one", 5, merges=other)
    assert names(merged) == "abced"
    assert_same_scores(bench.heads(merged), bench.heads(read_version(bench.store, "m", 5)))


def test_a_merged_version_is_certified_against_both(bench: Bench) -> None:
    other = branches(bench, "c", "de")
    merged = bench.run("one", 4, merges=other)
    assert (merged.kind, merged.dataset, merged.merged) == ("merge", None, other)
    assert set(merged.report.drift) == {f"ds-{name}" for name in "abcde"}
    assert {line.name: line.version for line in merged.learned} == {
        "a": 1,
        "b": 2,
        "c": 3,
        "d": 4,
        "e": 4,
    }
    then = bench.run("one", 5, unlearns="ds-c")
    assert_same_scores(bench.heads(then), bench.heads(bench.learn("never", "abde")))


def test_models_without_a_common_dataset_are_merged(bench: Bench) -> None:
    """Two sites that started independently."""
    bench.learn("site", "ce")
    bench.learn("m2", "dab")
    merged = bench.run("m2", 4, merges=VersionRef(model="site", version=2))
    assert names(merged) == "dabce"
    assert_same_scores(bench.heads(merged), bench.heads(read_version(bench.store, "m", 5)))


def test_with_more_features_than_rows_unlearning_and_merging_are_exact_too(tmp_path: Path) -> None:
    bench = Bench(LocalStore(tmp_path / "store"), tmp_path, LIFTED)
    union = bench.learn("m", "ace")
    bench.learn("one", "ac")
    bench.learn("two", "e")
    merged = bench.run("one", 3, merges=VersionRef(model="two", version=1))
    assert_same_scores(bench.heads(merged), bench.heads(union), LIFTED)
    found, never = bench.run("m", 4, unlearns="ds-c"), bench.learn("never", "ae")
    assert_same_scores(bench.heads(found), bench.heads(never), LIFTED)


def test_models_that_centre_a_narrow_cone_by_different_datasets_are_not_merged(
    tmp_path: Path,
) -> None:
    cone = Bench(LocalStore(tmp_path / "store"), tmp_path, constant=20.0)
    cone.learn("site", "ce")
    cone.learn("m2", "dab")
    other = VersionRef(model="site", version=2)
    with pytest.raises(
        CannotCombine, match=r"centre the features of 'depth' by different .*centred: false"
    ):
        cone.run("m2", 4, merges=other)


def test_branches_that_centred_a_narrow_cone_before_are_merged(tmp_path: Path) -> None:
    cone = Bench(LocalStore(tmp_path / "store"), tmp_path, constant=20.0)
    union = cone.learn("m", "abcde")
    other = branches(cone, "c", "de")
    merged = cone.run("one", 4, merges=other)
    assert_same_scores(cone.heads(merged), cone.heads(union))
    assert cone.heads(merged).conditioning.keys() == WIDTHS.keys()


def test_without_centring_a_narrow_cone_is_learned_in_any_order_and_merged(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"centred": False})
    cone = Bench(LocalStore(tmp_path / "store"), tmp_path, spec, constant=20.0)
    union, other = cone.learn("m", "abcde"), cone.learn("other", "debac")
    assert_same_scores(cone.heads(other), cone.heads(union))
    cone.learn("site", "ce")
    cone.learn("m2", "dab")
    merged = cone.run("m2", 4, merges=VersionRef(model="site", version=2))
    assert_same_scores(cone.heads(merged), cone.heads(union))


def test_merging_what_is_there_is_refused(bench: Bench) -> None:
    bench.branch("m", "twin", 3)
    with pytest.raises(CannotCombine, match="every dataset"):
        bench.run("m", 6, merges=VersionRef(model="twin", version=3))


def test_the_order_of_arrival_changes_no_score(bench: Bench) -> None:
    one, other = bench.learn("one", "abcde"), bench.learn("other", "debac")
    assert (names(one), names(other)) == ("abcde", "debac")
    assert_same_scores(bench.heads(one), bench.heads(other))
