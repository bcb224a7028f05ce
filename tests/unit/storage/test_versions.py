"""A version is complete or absent, and every byte is checked when it is read."""

from pathlib import Path

import pytest
from blake3 import blake3

from cmcl.contract.errors import (
    DigestMismatch,
    InvalidVersion,
    ObjectExists,
    ObjectNotFound,
    VersionTaken,
)
from cmcl.contract.version import LivePointer
from tests.fakes.crashes import Crash, CrashingStore, FaultAtMoment
from tests.fakes.flaky_store import FlakyStore
from tests.unit.storage.candidate import FILES, manifest_of
from workers.storage import layout
from workers.storage.local import LocalStore
from workers.storage.versions import (
    Digests,
    Hash,
    check_candidate,
    considerate_sha256_of,
    digests_of_file,
    entry_for,
    publish_files,
    read_candidate,
    read_live,
    read_verified,
    read_version,
    read_version_file,
    refer_to_version,
    sha256_of,
    sha256_of_file,
    write_candidate,
    write_live,
)

# Before and after the writing of each file and of the manifest; after the last, nothing can fail.
MOMENTS_TO_DIE = range(1, 2 * (len(FILES) + 1))
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def candidate(store: LocalStore) -> LocalStore:
    """A store with a complete candidate that is not published."""
    write_candidate(store, manifest_of(FILES), FILES)
    return store


def contents(store: LocalStore, prefix: str = "") -> dict[str, bytes]:
    return {key: store.read(key) for key in store.keys(prefix)}


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "large").write_bytes(b"x" * (3 << 20))
    assert sha256_of_file(tmp_path / "abc") == entry_for(b"abc").sha256 == ABC
    assert sha256_of_file(tmp_path / "large") == entry_for(b"x" * (3 << 20)).sha256
    assert digests_of_file(tmp_path / "large") == Digests(
        sha256_of_file(tmp_path / "large"), blake3(b"x" * (3 << 20)).hexdigest()
    )


@pytest.mark.parametrize("hashed", [sha256_of, considerate_sha256_of])
@pytest.mark.parametrize("damage", [b"", b"ab", b"abcd", b"xyz"])
def test_other_bytes_than_promised_are_never_answered(
    store: LocalStore, damage: bytes, hashed: Hash
) -> None:
    store.put("a/file", damage)
    with pytest.raises(DigestMismatch, match="a/file"):
        read_verified(store, "a/file", entry_for(b"abc"), hashed)


@pytest.mark.parametrize("hashed", [sha256_of, considerate_sha256_of])
def test_bytes_that_were_promised_are_answered_whole(store: LocalStore, hashed: Hash) -> None:
    several_pieces = bytes(range(251)) * 10_000
    store.put("a/file", several_pieces)
    assert read_verified(store, "a/file", entry_for(several_pieces), hashed) == several_pieces


def test_a_candidate_is_read_as_it_was_written(candidate: LocalStore) -> None:
    assert read_candidate(candidate, "job-1", 1) == manifest_of(FILES)
    check_candidate(candidate, manifest_of(FILES))


def test_the_manifest_of_a_candidate_is_written_last(store: LocalStore) -> None:
    recording = FlakyStore(store)
    write_candidate(recording, manifest_of(FILES), FILES)
    assert recording.calls[-1] == "runs/job-1/a1/candidate/manifest.json"
    assert set(recording.calls) == set(store.keys(""))


@pytest.mark.parametrize("moment", MOMENTS_TO_DIE)
def test_a_job_killed_at_any_moment_leaves_no_candidate(store: LocalStore, moment: int) -> None:
    with pytest.raises(Crash):
        write_candidate(CrashingStore(store, FaultAtMoment(moment)), manifest_of(FILES), FILES)
    with pytest.raises(ObjectNotFound):
        read_candidate(store, "job-1", 1)


def test_the_manifest_of_an_attempt_can_be_written_once(candidate: LocalStore) -> None:
    with pytest.raises(ObjectExists):
        write_candidate(candidate, manifest_of(FILES), FILES)


def test_attempts_do_not_touch_each_other(candidate: LocalStore) -> None:
    before = contents(candidate)
    other = {name: data + b" again" for name, data in FILES.items()}
    write_candidate(candidate, manifest_of(other, attempt=2), other)
    assert contents(candidate, "runs/job-1/a1/") == before
    check_candidate(candidate, read_candidate(candidate, "job-1", 2))


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_damaged_file_of_a_candidate_is_found_and_named(candidate: LocalStore, name: str) -> None:
    candidate.put(layout.run_file("job-1", 1, name), FILES[name][:-1] + b"!")
    with pytest.raises(InvalidVersion, match=name):
        check_candidate(candidate, manifest_of(FILES))


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_of_a_candidate_is_found_and_named(candidate: LocalStore, name: str) -> None:
    candidate.delete(layout.run_file("job-1", 1, name))
    with pytest.raises(InvalidVersion, match=name):
        check_candidate(candidate, manifest_of(FILES))


@pytest.mark.parametrize("name", layout.VERSION_FILES)
def test_a_manifest_that_omits_a_file_is_rejected(candidate: LocalStore, name: str) -> None:
    rest = {other: data for other, data in FILES.items() if other != name}
    with pytest.raises(InvalidVersion, match=f"names no {name}"):
        check_candidate(candidate, manifest_of(rest))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"model": "scenes"}', b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_an_invalid_version(
    store: LocalStore, data: bytes
) -> None:
    store.put(layout.version_file("scenes", 1, layout.MANIFEST), data)
    with pytest.raises(InvalidVersion, match=r"models/scenes/versions/1/manifest\.json"):
        read_version(store, "scenes", 1)


def test_a_published_version_has_the_candidate_s_bytes_and_its_dataset_the_moments(
    candidate: LocalStore,
) -> None:
    publish_files(candidate, manifest_of(FILES))
    manifest = read_version(candidate, "scenes", 1)
    assert manifest == manifest_of(FILES)
    for name in layout.VERSION_FILES:
        assert read_version_file(candidate, manifest, name) == FILES[name]
    assert candidate.read(layout.dataset_moments("data-1")) == FILES[layout.MOMENTS]


def test_publishing_twice_is_publishing_once(candidate: LocalStore) -> None:
    publish_files(candidate, manifest_of(FILES))
    once = contents(candidate)
    publish_files(candidate, manifest_of(FILES))
    assert contents(candidate) == once


def test_a_version_is_never_written_over_by_another_one(candidate: LocalStore) -> None:
    earlier = manifest_of({**FILES, layout.HEADS: b"of another job"})
    key = layout.version_file("scenes", 1, layout.MANIFEST)
    candidate.put(key, earlier.model_dump_json().encode())
    before = contents(candidate)
    for publish in (publish_files, refer_to_version):
        with pytest.raises(VersionTaken, match="another version 1 of scenes already"):
            publish(candidate, manifest_of(FILES))
    assert contents(candidate) == before


def test_a_damaged_manifest_can_be_replaced(
    candidate: LocalStore,
) -> None:
    candidate.put(layout.version_file("scenes", 1, layout.MANIFEST), b"{")
    publish_files(candidate, manifest_of(FILES))
    assert read_version(candidate, "scenes", 1) == manifest_of(FILES)


@pytest.mark.parametrize("moment", MOMENTS_TO_DIE)
def test_a_publication_killed_at_any_moment_is_invisible_and_can_be_finished(
    candidate: LocalStore, moment: int
) -> None:
    with pytest.raises(Crash):
        publish_files(CrashingStore(candidate, FaultAtMoment(moment)), manifest_of(FILES))
    with pytest.raises(ObjectNotFound):
        read_version(candidate, "scenes", 1)
    publish_files(candidate, manifest_of(FILES))
    manifest = read_version(candidate, "scenes", 1)
    for name in layout.VERSION_FILES:
        assert read_version_file(candidate, manifest, name) == FILES[name]


@pytest.mark.parametrize("name", layout.VERSION_FILES)
def test_a_published_file_that_was_damaged_since_is_never_answered(
    candidate: LocalStore, name: str
) -> None:
    publish_files(candidate, manifest_of(FILES))
    candidate.put(layout.version_file("scenes", 1, name), b"rotten")
    with pytest.raises(DigestMismatch, match=name):
        read_version_file(candidate, manifest_of(FILES), name)


def test_a_file_that_the_manifest_does_not_name_is_an_invalid_version(
    candidate: LocalStore,
) -> None:
    publish_files(candidate, manifest_of(FILES))
    with pytest.raises(InvalidVersion, match=r"other\.safetensors"):
        read_version_file(candidate, manifest_of(FILES), "other.safetensors")


def test_no_version_answers_before_the_first_pointer(store: LocalStore) -> None:
    assert read_live(store, "scenes") is None


def test_the_pointer_is_read_as_it_was_written_last(store: LocalStore) -> None:
    for generation, version in ((1, 1), (2, 2), (3, 1)):
        write_live(store, "scenes", LivePointer(generation=generation, version=version))
    assert read_live(store, "scenes") == LivePointer(generation=3, version=1)
    assert read_live(store, "others") is None


def test_a_pointer_from_a_newer_control_plane_can_be_read(store: LocalStore) -> None:
    store.put(layout.live_pointer("scenes"), b'{"generation": 4, "version": 2, "newer": 3}')
    assert read_live(store, "scenes") == LivePointer(generation=4, version=2)


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"generation": 1}', b'{"generation": 0, "version": 1}']
)
def test_a_pointer_that_cannot_be_read_is_no_absent_pointer(store: LocalStore, data: bytes) -> None:
    store.put(layout.live_pointer("scenes"), data)
    with pytest.raises(InvalidVersion, match=r"live\.json"):
        read_live(store, "scenes")
