"""Versions say which encoders computed their features, and how many rows were left out."""

from dataclasses import replace
from pathlib import Path

import pytest

from cmcl.contract.dataset import RejectedRow, RejectedRows
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import InvalidDataset
from cmcl.contract.job import Failure, JobSpec
from cmcl.contract.modality import FileEntry
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import publish_manifest, read_candidate
from tests.unit.train.test_job import STREAM, prepare_job, run
from workers.train.versions import joined_encoders, read_parent


def identity(name: str, width: int = 8, **versions: str) -> EncoderIdentity:
    return EncoderIdentity(
        kind="synthetic", adapter=1, model=name, takes="text", width=width, versions=versions
    )


def with_dataset(store: LocalStore, job: JobSpec, **fields: object) -> JobSpec:
    changed = job.model_copy(update={"dataset": job.learns.model_copy(update=fields)})
    store.put(layout.run_spec(job.job, 1), changed.model_dump_json().encode())
    return changed


def learn(store: LocalStore, job: JobSpec) -> VersionManifest:
    run(store, job)
    candidate = read_candidate(store, job.job, 1)
    publish_manifest(store, candidate)
    return candidate


def test_encoders_and_rows_that_were_left_out_are_in_the_lineage(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    rejected = RejectedRows(
        rows=3,
        file=FileEntry(sha256="0" * 64, bytes=10),
        first=(
            RejectedRow(id="a", file="file:///a", row=1, place="a.jsonl line 8", reason="empty"),
        ),
    )
    of_text, of_depth = identity("words"), identity("depths")
    first = with_dataset(
        store,
        prepare_job(store, tmp_path, STREAM.datasets[0]),
        encoders={"text": of_text},
        rejected=rejected,
    )
    version = learn(store, first)
    assert version.encoders == {"text": of_text}
    assert version.learned[0].encoders == {"text": of_text.digest}
    assert version.learned[0].rejected_rows == 3
    # The next dataset has features of an undeclared encoder for text, and a known one for depth.
    second = with_dataset(
        store,
        prepare_job(store, tmp_path, STREAM.datasets[1], version=2),
        encoders={"depth": of_depth},
    )
    version = learn(store, second)
    assert version.encoders == {"text": of_text, "depth": of_depth}
    assert version.learned[1].encoders == {"depth": of_depth.digest}
    assert version.learned[1].rejected_rows == 0


def test_features_of_another_encoder_than_the_parent_s_are_not_learned(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    first = prepare_job(store, tmp_path, STREAM.datasets[0])
    learn(store, with_dataset(store, first, encoders={"text": identity("words")}))
    second = prepare_job(store, tmp_path, STREAM.datasets[1], version=2)
    other = with_dataset(store, second, encoders={"text": identity("others")})
    with pytest.raises(InvalidDataset, match="model is 'others', expected 'words'"):
        run(store, other)
    failure = read_document(store, layout.run_failure(other.job, 1), Failure)
    assert failure.reason == "invalid_dataset"


def test_another_version_of_a_library_is_the_same_encoder(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    known = identity("words", torch="2.15")
    job = with_dataset(
        store,
        prepare_job(store, tmp_path, STREAM.datasets[0]),
        encoders={"text": identity("words", torch="2.16")},
    )
    parent = replace(read_parent(store, job), encoders={"text": known})
    assert joined_encoders(parent, job.learns) == {"text": known}
