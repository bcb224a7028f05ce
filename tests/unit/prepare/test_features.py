"""From a user's file to a shard: its location, its origin, and which rows are held out."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from blake3 import blake3

from cmcl.contract.dataset import Shard, ShardRef
from cmcl.contract.errors import InvalidDataset, InvalidUri, StorageUnavailable
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from tests.fakes.feature_shards import fetch, read_rows
from tests.unit.files.user_files import (
    SIDES,
    Arrays,
    arrays,
    paired,
    write_encrypted,
    write_npz,
    write_parquet,
    write_safetensors,
)
from workers.files.columns import FEATURES
from workers.files.shards import ROWS_IN_A_GROUP, write_shard
from workers.prepare.features import FeatureFile, read_features, take_features
from workers.prepare.units import SideSpec, UnitRecord
from workers.sandbox.child import Child
from workers.sandbox.child_process import Frame


class Output:
    """What the task sends, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = UnitRecord()
        folder.mkdir()

    def step(self, name: str) -> None:
        """See FrameWriter."""

    def send(self, header: dict[str, Any], body: object = ()) -> None:
        """See FrameWriter."""
        self.shards = UnitRecord.model_validate(header)


class Taking:
    """Takes files of a folder, into a store."""

    def __init__(self, folder: Path) -> None:
        self.theirs, self.store = folder / "theirs", LocalStore(folder / "store")
        self.theirs.mkdir()
        self._folder, self._taken = folder, 0

    def request(self, name: str, **fields: Any) -> FeatureFile:
        """The request to take a file, to train on all of it."""
        uri = (self.theirs / name).as_uri()
        known: dict[str, Any] = {
            "store": self.store.uri,
            "dataset": "ds-1",
            "ref": ShardRef(uri=uri),
            "address": uri,
            "allowed": (self.theirs.as_uri(),),
            "sides": tuple(SideSpec(modality=side.modality, width=side.width) for side in SIDES),
            "is_held_out": False,
            "share": None,
            "index": 0,
            "evaluation_index": 0,
            "left_out": None,
            "ids_key": "ids",
        }
        return FeatureFile.model_validate(known | fields)

    def __call__(self, name: str, **fields: Any) -> UnitRecord:
        self._taken += 1
        output = Output(self._folder / f"local-{self._taken}")
        take_features(self.request(name, **fields), output)  # type: ignore[arg-type]
        return output.shards

    def training(self, name: str, **fields: Any) -> Shard:
        """The shard of a file, to train on."""
        shard = self(name, **fields).training
        assert shard is not None
        return shard

    def halves(self, names: str, share: float, **fields: Any) -> tuple[list[Shard], list[Shard]]:
        """The shards of both parts of some files, whose names are letters."""
        splits = [
            self(name, share=share, index=index, evaluation_index=index, **fields)
            for index, name in enumerate(names)
        ]
        return (
            [split.training for split in splits if split.training],
            [split.evaluation for split in splits if split.evaluation],
        )


@pytest.fixture
def take(tmp_path: Path) -> Taking:
    return Taking(tmp_path)


@pytest.fixture
def theirs(take: Taking) -> Path:
    return take.theirs


def other_arrays(seed: int, rows: int = 200) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        side.column: generator.normal(size=(rows, side.width)).astype(np.float32) for side in SIDES
    }


def ids_of(shards: list[Shard], folder: Path) -> list[str]:
    found: list[str] = []
    for shard in shards:
        fetch(shard, folder / "again.parquet")
        found += pq.read_table(folder / "again.parquet").column("id").to_pylist()
    return found


def test_internal_parquet_stays_where_it_is(take: Taking, theirs: Path) -> None:
    write_parquet(theirs / "a", arrays())
    shard = take.training("a")
    assert shard.uri == (theirs / "a").as_uri()
    assert shard.sha256 == hashlib.sha256((theirs / "a").read_bytes()).hexdigest()
    assert shard.blake3 == blake3((theirs / "a").read_bytes()).hexdigest()
    assert shard.source is None
    assert list(take.store.keys("")) == ["ids"]


def test_another_format_is_converted_into_our_store(
    take: Taking, theirs: Path, tmp_path: Path
) -> None:
    values = arrays(rows=300, kind="float64")
    write_npz(theirs / "a", values)
    shard = take.training("a", index=3)
    assert list(take.store.keys("datasets")) == [layout.training_shard("ds-1", 3, shard.sha256)]
    assert shard.source is not None
    assert shard.source.uri == (theirs / "a").as_uri()
    assert shard.source.format == "npz"
    assert shard.source.bytes == (theirs / "a").stat().st_size
    assert shard.source.sha256 == hashlib.sha256((theirs / "a").read_bytes()).hexdigest()
    assert fetch(shard, tmp_path / "again").rows == shard.rows == 300
    rows = read_rows([tmp_path / "again"])
    assert np.array_equal(rows.feature_b_BI, values["feature_b"].astype(np.float32))


@pytest.mark.parametrize("write", [write_parquet, write_npz])
def test_that_a_file_is_another_one_counts_before_its_bad_rows(
    take: Taking, theirs: Path, write: Callable[[Path, Arrays], None]
) -> None:
    """They are found at the same time. The message must not depend on which of them is first."""
    values = arrays()
    values["feature_a"][0] = np.nan
    write(theirs / "a", values)
    with pytest.raises(InvalidDataset, match="NaN"):
        take.training("a")
    with pytest.raises(InvalidDataset, match=f"its SHA-256 is .*, expected {'0' * 64}"):
        take("a", ref=ShardRef(uri=(theirs / "a").as_uri(), sha256="0" * 64))


def test_a_held_out_file_of_any_format_is_copied(take: Taking, theirs: Path) -> None:
    write_parquet(theirs / "a", arrays())
    write_safetensors(theirs / "b", other_arrays(1))
    copied = take("a", is_held_out=True).evaluation
    converted = take("b", is_held_out=True, index=1).evaluation
    assert copied is not None
    assert converted is not None
    assert copied.source is None
    assert converted.source is not None
    keys = [
        f"datasets/ds-1/evaluation-{index}-{shard.sha256[:12]}.parquet"
        for index, shard in enumerate((copied, converted))
    ]
    assert take.store.read(keys[0]) == (theirs / "a").read_bytes()
    assert [shard.uri for shard in (copied, converted)] == [
        f"{take.store.uri}/{key}" for key in keys
    ]


def test_no_row_is_lost_and_none_is_in_both_halves(
    take: Taking, theirs: Path, tmp_path: Path
) -> None:
    for seed in (1, 2):
        write_npz(theirs / str(seed), other_arrays(seed))
    pq.write_table(paired(rows=150), theirs / "3")
    training, evaluation = take.halves("123", 0.3)
    kept, learned = ids_of(evaluation, tmp_path), ids_of(training, tmp_path)
    assert not set(kept) & set(learned)
    assert len(kept) + len(learned) == len({*kept, *learned}) == 550
    assert 110 < len(kept) < 220


def test_a_part_without_rows_is_no_shard(take: Taking, theirs: Path) -> None:
    write_npz(theirs / "a", {name: value[:1].copy() for name, value in arrays().items()})
    split = take("a", share=0.01)
    assert split.evaluation is None
    assert split.training is not None
    assert split.training.rows == 1


def test_row_groups_can_be_read_one_at_a_time(tmp_path: Path) -> None:
    table = paired(rows=20_000)
    assert write_shard(tmp_path / "a", table.to_batches(max_chunksize=3000)) == 20_000
    metadata = pq.read_metadata(tmp_path / "a")
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert groups == [ROWS_IN_A_GROUP, ROWS_IN_A_GROUP, 20_000 - 2 * ROWS_IN_A_GROUP]
    assert pq.read_table(tmp_path / "a").cast(table.schema).equals(table)


def test_features_of_our_own_shards_are_said_to_have_no_gaps(tmp_path: Path) -> None:
    # Otherwise Parquet notes for each number whether it is there, and is decoded in twice the time.
    write_shard(tmp_path / "a", paired().to_batches())
    schema = pq.read_schema(tmp_path / "a")
    for name in FEATURES:
        assert not schema.field(name).nullable
        assert not schema.field(name).type.value_field.nullable


def test_a_symlink_created_later_is_not_followed(
    take: Taking, theirs: Path, tmp_path: Path
) -> None:
    (theirs / "day").mkdir()
    write_npz(theirs / "day" / "a", arrays())
    take("day/a")
    (tmp_path / "outside").mkdir()
    write_npz(tmp_path / "outside" / "a", other_arrays(1))
    (theirs / "day" / "a").unlink()
    (theirs / "day").rmdir()
    (theirs / "day").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidUri, match="outside the allowed prefixes"):
        take("day/a")


def test_a_store_that_cannot_be_written_is_not_the_user_s_fault(take: Taking, theirs: Path) -> None:
    write_npz(theirs / "a", arrays())
    with pytest.raises(StorageUnavailable):
        take("a", store="file:///dev/null/store")


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_encrypted_parquet_is_refused(
    take: Taking, theirs: Path, reader_child: Child, plaintext_footer: bool
) -> None:
    """Arrow ends the process for an encrypted column behind a plain footer."""
    write_encrypted(theirs / "a", plaintext_footer)
    with pytest.raises(InvalidDataset, match=r"/a: it is encrypted|/a ended with SIGABRT, twice"):
        read_features(reader_child, take.request("a"))


class Liar:
    """A child that was taken over: it sends these frames."""

    def __init__(self, *frames: Frame) -> None:
        self._frames = list(frames)

    def collect(self, *_: object) -> list[Frame]:
        """See Child."""
        return self._frames


@pytest.mark.parametrize(
    "frames", [(), (Frame({"training": {"uri": 3}}),), (Frame({}, bytearray(b"[")), Frame({}))]
)
def test_a_child_that_sends_no_sound_result_refuses_its_file(
    take: Taking, frames: tuple[Frame, ...]
) -> None:
    with pytest.raises(InvalidDataset, match="/a: reading it sent no sound result"):
        read_features(Liar(*frames), take.request("a"))  # type: ignore[arg-type]


def test_a_full_disk_is_not_the_user_s_fault(tmp_path: Path) -> None:
    def endless() -> Iterator[object]:
        while True:
            yield from paired(rows=8192).to_batches()

    # Every write to it fails as on a full disk.
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(StorageUnavailable, match=r"converted shard cannot be written.*No space"):
        write_shard(tmp_path / "full", endless())
