"""The reported capacity of a version, compared with its memory and the next job's report."""

from pathlib import Path

import pytest
import torch

from cmcl.contract.job import VersionRef
from tests.unit.inspect.conftest import LOSSY, ROOMY, grow, spec_of
from tests.unit.train.test_unlearn_and_merge import Bench
from workers.inspect.capacity import ModelCapacity, model_capacity
from workers.inspect.versions import Unanswerable, find_version
from workers.nullspace.capacity import energy_ranks
from workers.nullspace.mask import product_mask
from workers.nullspace.subspace import eigenbasis
from workers.storage.local import LocalStore
from workers.storage.object_store import ObjectStore
from workers.train.versions import read_heads, read_memory


@pytest.fixture
def found(store: ObjectStore) -> ModelCapacity:
    return model_capacity(store, "m", 3)


def test_free_shares_are_those_of_energies_counted_out(
    store: ObjectStore, found: ModelCapacity
) -> None:
    manifest = find_version(store, "m", 3)
    heads, memory = read_heads(store, manifest), read_memory(store, manifest)
    for modality, one in found.modalities.items():
        inputs, partners = memory.inputs_of(modality), memory.partners_of(modality, heads)
        assert inputs is not None
        assert partners is not None
        values = [torch.linalg.eigvalsh(moment.sum_II) for moment in (partners, inputs)]
        for ranks, values_I in zip((one.now.outputs, one.now.inputs), values, strict=True):
            missing_I = 1 - values_I.flip(0).cumsum(0) / values_I.sum()
            found_at = [1 + int((missing_I > 1 - kept).sum()) for kept in (0.9, 0.95, 0.99)]
            assert [ranks.at_90, ranks.at_95, ranks.at_99] == found_at
        energy_N = torch.outer(*values).clamp_min(0).flatten().sort().values
        most = (1 - found.kept_energy) * float(energy_N.sum())
        free = int((energy_N.cumsum(0) <= most).sum())
        assert one.now.blocked_share == pytest.approx(1 - free / len(energy_N))
        assert one.history[-1].free_share == pytest.approx(1 - one.now.blocked_share)


def test_what_a_version_had_closed_is_what_the_next_job_met(
    store: ObjectStore, found: ModelCapacity
) -> None:
    met = find_version(store, "m", 2).report.protection["t"]
    (share,) = (one.free_share for one in found.modalities["t"].history if one.version == 1)
    assert share == pytest.approx(1 - met.blocked_share)


def test_a_version_that_merged_several_datasets_is_counted_once(tmp_path: Path) -> None:
    bench = Bench(LocalStore(tmp_path / "store"), tmp_path)
    bench.learn("m", "a")
    bench.learn("other", "bc")
    bench.run("m", 2, merges=VersionRef(model="other", version=2))
    history = model_capacity(bench.store, "m", 2).modalities["text"].history
    assert [each.version for each in history] == [1, 2]


def test_history_begins_where_a_modality_does(found: ModelCapacity) -> None:
    versions = {
        modality: [(share.version, share.learned) for share in one.history]
        for modality, one in found.modalities.items()
    }
    assert versions == {
        "v": [(1, True), (2, False), (3, True)],
        "t": [(1, True), (2, True), (3, True)],
        "a": [(2, True), (3, False)],
    }
    assert found.modalities["a"].forecast.datasets_left is None


def test_an_earlier_version_is_independent_of_later_ones(store: ObjectStore) -> None:
    first = model_capacity(store, "m", 1)
    assert set(first.modalities) == {"v", "t"}
    assert all(len(one.history) == 1 for one in first.modalities.values())


def test_a_dataset_of_another_kind_raises_the_ranks(tmp_path: Path) -> None:
    other = LocalStore(tmp_path / "store")
    grow(other, tmp_path, spec_of(LOSSY), ("one_vt", "noise_vt"))
    first, second = (model_capacity(other, "m", version).modalities["v"] for version in (1, 2))
    assert second.now.inputs.at_90 > first.now.inputs.at_90
    assert second.history[1].free_share < second.history[0].free_share
    assert second.history[0] == first.history[0]


def test_a_stable_index_counts_what_the_pair_has_published(tmp_path: Path) -> None:
    other = LocalStore(tmp_path / "store")
    protection = {"policy": "replay", "stable_index": True}
    grow(other, tmp_path, spec_of(ROOMY, protection=protection), ("one_vt",))
    manifest = find_version(other, "m", 1)
    memory, heads = read_memory(other, manifest), read_heads(other, manifest)
    (moments,) = memory.by_pair.values()
    # Of one dataset all is known: in the pair t, v both sides have published what they read.
    own, partners = (
        side.through(heads.weights[modality])
        for side, modality in ((moments.first, "t"), (moments.second, "v"))
    )
    outputs = eigenbasis(partners + own + partners)
    free_EI = product_mask(outputs, eigenbasis(moments.first), manifest.spec.protection.kept_energy)
    found = model_capacity(other, "m", 1).modalities["t"]
    assert found.now.blocked_share == pytest.approx(1 - float(free_EI.double().mean()), abs=0.01)
    assert found.now.outputs == energy_ranks(outputs)
    assert found.now.outputs != energy_ranks(eigenbasis(partners))


def test_a_method_without_masks_is_remarked_upon(tmp_path: Path) -> None:
    other = LocalStore(tmp_path / "store")
    grow(other, tmp_path, spec_of(LOSSY, method="vanilla"), ("one_vt",))
    (remark,) = model_capacity(other, "m", 1).remarks
    assert "vanilla" in remark


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        ("m", 4, "model 'm' has no version 4: the store has versions 1 to 3"),
        ("other", 1, "model 'other' has no version 1: the store has no version of it"),
    ],
)
def test_no_such_version_is_answered_with_those_there_are(
    store: ObjectStore, model: str, version: int, words: str
) -> None:
    with pytest.raises(Unanswerable, match=f"^{words}$"):
        model_capacity(store, model, version)
