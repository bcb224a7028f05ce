"""Files of a dataset from its POST to its version, in every format."""

import io
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmcl.contract.dataset import DatasetManifest, Shard, ShardRef
from cmcl.contract.errors import InvalidDataset, InvalidUri
from cmcl.contract.modality import ModalityPair
from service.datasets.verify import ValidationTask, verify
from service.states import FailureReason, JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table, write_shard
from workers.storage import layout
from workers.storage.versions import sha256_of_file


def manifest_of(plane: ControlPlane, job: str) -> DatasetManifest:
    plane.tick_to(job, JobState.RUNNING)
    manifest = plane.dataset_of(job).manifest
    assert manifest is not None
    return manifest


def npz_shard(plane: ControlPlane, name: str, rows: int = 64) -> dict[str, str]:
    generator = np.random.default_rng(len(name))
    path = plane.shards / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(
            file, image=generator.normal(size=(rows, 4)), text=generator.normal(size=(rows, 3))
        )
    return {"uri": path.resolve().as_uri()}


def ids_of(plane: ControlPlane, shards: tuple[Shard, ...]) -> set[str]:
    found: set[str] = set()
    for shard in shards:
        data = plane.store.read(shard.uri.removeprefix(f"{plane.store.uri}/"))
        found |= set(pq.read_table(io.BytesIO(data)).column("id").to_pylist())
    return found


def test_an_npz_dataset_becomes_a_version(plane: ControlPlane) -> None:
    job = plane.post_dataset(shards=[npz_shard(plane, "a.npz")])
    manifest = manifest_of(plane, job)
    (shard,) = manifest.shards
    key = layout.training_shard(manifest.dataset, 0, shard.sha256)
    assert shard.uri == f"{plane.store.uri}/{key}"
    source = shard.source
    assert source is not None
    assert (source.format, source.uri.endswith("a.npz")) == ("npz", True)
    assert plane.run_to_end(job).state == JobState.PUBLISHED


def test_a_share_is_held_out_and_never_trained_on(plane: ControlPlane) -> None:
    shards = [plane.shard(name, feature_table(60, prefix=name, seed=7)) for name in ("a",)]
    shards.append(npz_shard(plane, "b.npz"))
    job = plane.post_dataset(shards=shards, evaluation_share=0.25)
    manifest = manifest_of(plane, job)
    learned, kept = (ids_of(plane, part) for part in (manifest.shards, manifest.evaluation_shards))
    assert not learned & kept
    assert len(learned) + len(kept) == 124
    assert len(kept) == sum(shard.rows for shard in manifest.evaluation_shards) > 10
    assert all(shard.source is not None for shard in manifest.shards)


def test_named_and_shared_held_out_rows_have_their_own_files(plane: ControlPlane) -> None:
    job = plane.post_dataset(
        shards=[plane.shard("a", feature_table(60, prefix="a", seed=7))],
        evaluation_shards=[plane.shard("held", feature_table(5, prefix="held", seed=8))],
        evaluation_share=0.25,
    )
    manifest = manifest_of(plane, job)
    names = [Path(shard.uri).name.rsplit("-", 1)[0] for shard in manifest.evaluation_shards]
    assert names == ["evaluation-0", "evaluation-1"]
    assert manifest.evaluation_shards[0].rows == 5


def test_a_share_that_leaves_no_batch_is_refused(plane: ControlPlane) -> None:
    job = plane.post_dataset(
        shards=[plane.shard("a", feature_table(9, seed=5))], evaluation_share=0.5
    )
    found = plane.run_to_end(job)
    assert found.reason == FailureReason.INVALID_DATASET
    assert "rows together left to train on; one batch takes 8" in (found.message or "")
    assert plane.dataset_of(job).manifest is None


def test_a_share_of_too_few_different_values_is_refused(plane: ControlPlane) -> None:
    table = feature_table(60)
    same = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(240, np.float32)), 4)
    job = plane.post_dataset(
        shards=[plane.shard("a", table.set_column(1, "feature_a", same))], evaluation_share=0.1
    )
    message = plane.run_to_end(job).message or ""
    assert "evaluation_share 0.1 holds out 0 of 60 rows" in message
    assert "provide evaluation_shards" in message


def task_of(plane: ControlPlane, uri: str, place: str | None = None) -> ValidationTask:
    """That of a posted dataset, with another address in it. `place`: its location in our store."""
    job = plane.post_dataset()
    return ValidationTask(
        dataset=plane.dataset_of(job).id,
        model="scenes",
        name="one",
        pair=ModalityPair(first="image", second="text"),
        shards=(ShardRef(uri=uri),),
        spec=plane.model().spec,
        allowed=plane.context.settings.allowed_prefixes,
        locations={} if place is None else {uri: place},
    )


def test_an_upload_is_read_from_the_location_in_the_task(
    plane: ControlPlane, tmp_path: Path
) -> None:
    write_shard(tmp_path / "elsewhere", feature_table(16))
    place = (tmp_path / "elsewhere").as_uri()
    task = task_of(plane, "upload:up-0123456789ab", place)
    manifest = verify(plane.store, task, tmp_path)
    assert [shard.uri for shard in manifest.shards] == [place]


def test_a_bad_upload_is_called_by_its_own_name(plane: ControlPlane, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"nothing of ours")
    uploaded = "upload:up-0123456789ab"
    task = task_of(plane, uploaded, (tmp_path / "elsewhere").as_uri())
    with pytest.raises(InvalidDataset) as caught:
        verify(plane.store, task, tmp_path)
    assert str(caught.value).startswith(f"{uploaded}: by its first bytes it is neither")


def test_a_user_s_address_is_looked_at_again(plane: ControlPlane, tmp_path: Path) -> None:
    write_shard(tmp_path / "elsewhere", feature_table(16))
    task = task_of(plane, (tmp_path / "elsewhere").as_uri())
    with pytest.raises(InvalidUri, match="outside the allowed prefixes"):
        verify(plane.store, task, tmp_path)


def test_a_link_swapped_in_after_the_post_is_not_followed(
    plane: ControlPlane, tmp_path: Path
) -> None:
    shard = plane.shard("day/one")
    job = plane.post_dataset(shards=[shard])
    (plane.shards / "day").rename(tmp_path / "outside")
    (plane.shards / "day").symlink_to(tmp_path / "outside")
    found = plane.run_to_end(job)
    assert (found.state, found.reason) == (JobState.FAILED, FailureReason.INVALID_DATASET)
    assert "outside the allowed prefixes" in (found.message or "")


def test_of_two_concurrent_validations_the_first_manifest_is_kept(
    plane: ControlPlane, tmp_path: Path
) -> None:
    task = task_of(plane, plane.shard("one")["uri"])
    held = ShardRef(uri=plane.shard("held")["uri"])
    task = task.model_copy(update={"evaluation_shards": (held,)})
    first = verify(plane.store, task, tmp_path)
    plane.shard("held", feature_table(16, prefix="changed", seed=9))
    assert verify(plane.store, task, tmp_path) == first
    kept = first.evaluation_shards[0]
    assert sha256_of_file(Path(urlsplit(kept.uri).path)) == kept.sha256
