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
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import (
    Digests,
    Hash,
    check_complete,
    considerate_sha256_of,
    digests_of_file,
    entry_for,
    publish_manifest,
    read_blob,
    read_candidate,
    read_live,
    read_version,
    read_version_file,
    sha256_of,
    write_blob,
    write_candidate,
    write_live,
)
from tests.fakes.crashes import Crash, CrashingStore, FaultAtMoment
from tests.fakes.flaky_store import FlakyStore
from tests.unit.storage.candidate import FILES, MOMENTS, manifest_of, write

# Before and after the writing of each file and of the manifest; after the last, nothing can fail.
MOMENTS_TO_DIE = range(1, 2 * (len(FILES) + 1))
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def candidate(store: LocalStore) -> LocalStore:
    """A store with a complete candidate that is not published."""
    write(store, FILES)
    return store


def key_of(name: str) -> str:
    return layout.blob(entry_for(FILES[name]).sha256)


def contents(store: LocalStore, prefix: str = "") -> dict[str, bytes]:
    return {key: store.read(key) for key in store.keys(prefix)}


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "large").write_bytes(b"x" * (3 << 20))
    assert digests_of_file(tmp_path / "abc").sha256 == entry_for(b"abc").sha256 == ABC
    assert digests_of_file(tmp_path / "large") == Digests(
        entry_for(b"x" * (3 << 20)).sha256, blake3(b"x" * (3 << 20)).hexdigest()
    )


@pytest.mark.parametrize("hashed", [sha256_of, considerate_sha256_of])
@pytest.mark.parametrize("damage", [b"", b"ab", b"abcd", b"xyz"])
def test_other_bytes_than_promised_are_never_answered(
    store: LocalStore, damage: bytes, hashed: Hash
) -> None:
    store.put(layout.blob(ABC), damage)
    with pytest.raises(DigestMismatch, match=ABC):
        read_blob(store, entry_for(b"abc"), hashed)


@pytest.mark.parametrize("hashed", [sha256_of, considerate_sha256_of])
def test_bytes_that_were_promised_are_answered_whole(store: LocalStore, hashed: Hash) -> None:
    several_pieces = bytes(range(251)) * 10_000
    entry = write_blob(store, several_pieces)
    assert read_blob(store, entry, hashed) == several_pieces


def test_a_candidate_is_read_as_it_was_written(candidate: LocalStore) -> None:
    assert read_candidate(candidate, "job-1", 1) == manifest_of(FILES)
    check_complete(candidate, manifest_of(FILES))


def test_the_manifest_of_a_candidate_is_written_last(store: LocalStore) -> None:
    recording = FlakyStore(store)
    write(recording, FILES)
    assert recording.calls[-1] == "runs/job-1/a1/candidate.json"
    assert set(recording.calls) == set(store.keys(""))


@pytest.mark.parametrize("moment", MOMENTS_TO_DIE)
def test_a_job_killed_at_any_moment_leaves_no_candidate(store: LocalStore, moment: int) -> None:
    with pytest.raises(Crash):
        write(CrashingStore(store, FaultAtMoment(moment)), FILES)
    with pytest.raises(ObjectNotFound):
        read_candidate(store, "job-1", 1)


def test_the_manifest_of_an_attempt_can_be_written_once(candidate: LocalStore) -> None:
    with pytest.raises(ObjectExists):
        write_candidate(candidate, manifest_of(FILES))


def test_attempts_do_not_touch_each_other(candidate: LocalStore) -> None:
    before = contents(candidate)
    other = {name: data + b" again" for name, data in FILES.items()}
    write(candidate, other, attempt=2)
    assert before.items() <= contents(candidate).items()
    check_complete(candidate, read_candidate(candidate, "job-1", 2))


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_of_another_size_is_found_and_named(candidate: LocalStore, name: str) -> None:
    candidate.put(key_of(name), FILES[name][:-1])
    with pytest.raises(InvalidVersion, match=name):
        check_complete(candidate, manifest_of(FILES))


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_of_a_candidate_is_found_and_named(candidate: LocalStore, name: str) -> None:
    candidate.delete(key_of(name))
    with pytest.raises(InvalidVersion, match=name):
        check_complete(candidate, manifest_of(FILES))


@pytest.mark.parametrize("name", layout.VERSION_FILES)
def test_a_manifest_that_omits_a_file_is_rejected(candidate: LocalStore, name: str) -> None:
    rest = {other: data for other, data in FILES.items() if other != name}
    with pytest.raises(InvalidVersion, match=f"names no {name}"):
        check_complete(candidate, manifest_of(rest))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"model": "scenes"}', b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_an_invalid_version(
    store: LocalStore, data: bytes
) -> None:
    store.put(layout.version_manifest("scenes", 1), data)
    with pytest.raises(InvalidVersion, match=r"models/scenes/versions/1/manifest\.json"):
        read_version(store, "scenes", 1)


def test_publication_is_one_object(candidate: LocalStore) -> None:
    before = set(candidate.keys(""))
    publish_manifest(candidate, manifest_of(FILES))
    assert set(candidate.keys("")) - before == {layout.version_manifest("scenes", 1)}
    manifest = read_version(candidate, "scenes", 1)
    assert manifest == manifest_of(FILES)
    for name in layout.VERSION_FILES:
        assert read_version_file(candidate, manifest, name) == FILES[name]
    assert read_blob(candidate, manifest.learned[0].moments) == FILES[MOMENTS]


def test_what_the_parent_has_is_not_written_again(store: LocalStore) -> None:
    recording = FlakyStore(store)
    known = write_blob(recording, b"of the parent")
    recording.calls.clear()
    assert write_blob(recording, b"of the parent", {known}) == known
    assert recording.calls == []
    # Without a parent that has it, it may be about to be removed.
    write_blob(recording, b"of the parent")
    assert recording.calls == [layout.blob(known.sha256)]


def test_publishing_twice_is_publishing_once(candidate: LocalStore) -> None:
    publish_manifest(candidate, manifest_of(FILES))
    once = contents(candidate)
    publish_manifest(candidate, manifest_of(FILES))
    assert contents(candidate) == once


def test_a_version_is_never_written_over_by_another_one(candidate: LocalStore) -> None:
    earlier = manifest_of({**FILES, layout.HEADS: b"of another job"})
    key = layout.version_manifest("scenes", 1)
    candidate.put(key, earlier.model_dump_json().encode())
    before = contents(candidate)
    with pytest.raises(VersionTaken, match="another version 1 of scenes already"):
        publish_manifest(candidate, manifest_of(FILES))
    assert contents(candidate) == before


def test_a_damaged_manifest_can_be_replaced(
    candidate: LocalStore,
) -> None:
    candidate.put(layout.version_manifest("scenes", 1), b"{")
    publish_manifest(candidate, manifest_of(FILES))
    assert read_version(candidate, "scenes", 1) == manifest_of(FILES)


@pytest.mark.parametrize("name", layout.VERSION_FILES)
def test_a_published_file_that_was_damaged_since_is_never_answered(
    candidate: LocalStore, name: str
) -> None:
    publish_manifest(candidate, manifest_of(FILES))
    candidate.put(key_of(name), b"rotten")
    with pytest.raises(DigestMismatch, match=key_of(name)):
        read_version_file(candidate, manifest_of(FILES), name)


def test_a_file_that_the_manifest_does_not_name_is_an_invalid_version(
    candidate: LocalStore,
) -> None:
    publish_manifest(candidate, manifest_of(FILES))
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
