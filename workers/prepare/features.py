"""Files of features, read in the bounded child: checked, converted and split, one file at a time."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cmcl.contract.dataset import RejectedRow, Shard, ShardRef, Uri
from cmcl.contract.modality import Frozen
from cmcl.storage.uris import open_store
from workers.files.formats.user_file import Side
from workers.files.intake import Address, FeatureIntake
from workers.files.shards import FEATURES, use_jemalloc
from workers.prepare.raw_rows import SideSpec
from workers.sandbox.frames import FrameWriter

if TYPE_CHECKING:
    from workers.sandbox.child import Child

_ROWS_IN_A_FRAME = 1000


class FeatureFile(Frozen):
    """One file of features, and how it is taken.

    `index`: number of its training shard, or of its evaluation shard if it `is_held_out`. `evaluation_index`:
    number of the shard of the rows that `share` holds out. `allowed`: permitted prefixes of addresses; None:
    the file is in our own store. `left_out`: reasons by row; None: a row that cannot be used is an error.
    `ids_key`: key under which the digests of its ids are stored.
    """

    store: str
    dataset: str
    ref: ShardRef
    address: Uri
    allowed: tuple[str, ...] | None
    sides: tuple[SideSpec, SideSpec]
    is_held_out: bool
    share: float | None
    index: int
    evaluation_index: int
    left_out: dict[int, str] | None
    ids_key: str


class FeatureShards(Frozen):
    """The shards of a file of features, and its rows that are left out."""

    training: Shard | None = None
    evaluation: Shard | None = None
    rejected: tuple[RejectedRow, ...] = ()


def read_features(child: "Child", file: FeatureFile) -> FeatureShards:
    """Read a file in the child. Raises InvalidDataset, InvalidUri, StorageUnavailable."""
    frames = child.collect(take_features, file)
    rejected = [
        RejectedRow.model_validate(row)
        for frame in frames
        if "rejected" in frame.header
        for row in json.loads(bytes(frame.body))
    ]
    return FeatureShards.model_validate({**frames[-1].header, "rejected": tuple(rejected)})


def take_features(file: FeatureFile, output: FrameWriter) -> None:
    """Check, convert and split a file, and send its shards. Runs in the child."""
    output.step(f"reading {file.ref.uri}")
    use_jemalloc()
    store = open_store(file.store)
    left_out = None if file.left_out is None else dict(file.left_out)
    intake = FeatureIntake(store, file.dataset, _sides(file), output.folder, left_out)
    shards = _shards(file, intake)
    store.put(file.ids_key, intake.ids)
    for rows in _chunks(intake.rejected):
        output.send({"rejected": len(rows)}, [json.dumps(rows).encode()])
    output.send(shards.model_dump(mode="json", exclude={"rejected"}))


def _shards(file: FeatureFile, intake: FeatureIntake) -> FeatureShards:
    address = Address(file.address, file.allowed)
    if file.is_held_out:
        return FeatureShards(evaluation=intake.evaluation_shard(file.ref, address, file.index))
    if file.share is None:
        return FeatureShards(training=intake.training_shard(file.ref, address, file.index))
    indices = (file.index, file.evaluation_index)
    split = intake.split_shard(file.ref, address, file.share, indices)
    return FeatureShards(training=split.training, evaluation=split.evaluation)


def _sides(file: FeatureFile) -> tuple[Side, Side]:
    first, second = (
        Side(column, side.modality, side.width)
        for column, side in zip(FEATURES, file.sides, strict=True)
    )
    return first, second


def _chunks(rejected: tuple[RejectedRow, ...]) -> Iterator[list[dict[str, object]]]:
    for start in range(0, len(rejected), _ROWS_IN_A_FRAME):
        yield [row.model_dump() for row in rejected[start : start + _ROWS_IN_A_FRAME]]
