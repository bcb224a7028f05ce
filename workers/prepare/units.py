"""What a dataset consists of: files with two sides, and units, which are prepared one by one.

A unit is a file of features, or a range of bytes or rows of a file of raw rows. `plan.plan` lists them.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cmcl.contract.dataset import RejectedRow, Shard, ShardRef, Uri
from cmcl.contract.encoder import EncoderIdentity, EncoderSpec, FeatureWidth
from cmcl.contract.modality import Frozen, Modality, ModalityPair
from cmcl.contract.model import ModelSpec

if TYPE_CHECKING:
    from workers.prepare.encoding import LeasedEncoder

ROWS_IN_A_UNIT = 1024

RawForm = Literal["jsonl", "csv", "parquet", "tar"]


class SideSpec(Frozen):
    """One side of the pair. `encoder` None: raw rows contain features of `width` numbers."""

    modality: Modality
    width: FeatureWidth
    encoder: EncoderSpec | None = None


class DatasetSource(Frozen):
    """The files of a dataset, and what is needed to read them.

    `sides`: that of feature_a, then that of feature_b. `allowed_prefixes`: permitted prefixes of the
    addresses of files, also of those that rows name. `locations`: the address in our own store for each
    address that stands for an upload.
    """

    files: tuple[ShardRef, ...]
    sides: tuple[SideSpec, SideSpec]
    allowed_prefixes: tuple[str, ...] = ()
    locations: dict[Uri, Uri] = Field(default={})


class Duplicate(Frozen):
    """A row whose id an earlier row has. `row`: its position in its file. `first_file`: that of the earlier row."""

    row: int
    first_file: Uri


class RawUnit(Frozen):
    """Consecutive rows of one file, which are read and encoded together.

    `file`: index into `DatasetSource.files`. `first_line`: of its first row, in forms of lines. `start`, `stop`: bytes of the file; 0 for Parquet, whose rows
    are found by number. `columns`: names of a CSV header. `seal`: digest of the rows, by which a change of
    the file after the plan is detected.
    """

    file: int = Field(ge=0)
    form: RawForm
    first_row: int = Field(ge=0)
    first_line: int = 0
    rows: int = Field(ge=1)
    start: int = 0
    stop: int = 0
    columns: tuple[str, ...] = ()
    has_labels: bool
    seal: str
    duplicates: tuple[Duplicate, ...] = ()


@dataclass(frozen=True)
class DatasetPlan:
    """The plan of a dataset: `units` of raw rows, or `feature_files` as indices into the files.

    The files of a dataset are all raw or all features. `rows`: number of raw rows; 0 for features, whose
    number is unknown before they are read.
    """

    units: list[RawUnit]
    feature_files: list[int]
    rows: int


def sides_of(
    pair: ModalityPair, spec: ModelSpec, encoders: dict[Modality, EncoderSpec]
) -> tuple[SideSpec, SideSpec]:
    """The two sides of a pair, as a model declares them."""
    first, second = (
        SideSpec(
            modality=modality,
            width=spec.modalities[modality].width,
            encoder=encoders.get(modality),
        )
        for modality in pair.modalities
    )
    return first, second


@dataclass(frozen=True)
class DatasetContext:
    """Values that all units of a dataset share.

    `files_to_train`: number of files to train on; the files after them are held out. `encoders`: those of the
    two sides; None for a side of features. `leaves_out`: rows of features that cannot be used are left out.
    `file_memory`: bytes of memory of each process that reads files.
    """

    store: str
    dataset: str
    request: int
    owner: str
    source: DatasetSource
    files_to_train: int
    share: float | None
    leaves_out: bool
    file_memory: int
    encoders: "tuple[LeasedEncoder | None, LeasedEncoder | None]" = (None, None)

    @property
    def encoders_have_started(self) -> bool:
        """Whether units can encode items; without, they can only use items that were encoded before."""
        return all(encoder is None or encoder.actors for encoder in self.encoders)

    @property
    def encoders_digest(self) -> str:
        """Digest over the identity of the encoder of each side, or the width of its features."""
        sides = [
            f"features:{side.width}" if encoder is None else encoder.identity.digest
            for side, encoder in zip(self.source.sides, self.encoders, strict=True)
        ]
        return hashlib.sha256(json.dumps(sides).encode()).hexdigest()


@dataclass(frozen=True)
class UnitTask:
    """One unit. `index`: its number, which orders shards. `raw`: None for a file of features.

    `left_out`: for features, reasons by row that are known from other files.
    """

    index: int
    file: int
    raw: RawUnit | None = None
    left_out: dict[int, str] = field(default_factory=dict)

    def digest(self, context: DatasetContext) -> str:
        """Digest over everything that decides the result."""
        described = [
            self.index,
            self.file,
            None if self.raw is None else self.raw.model_dump(mode="json"),
            sorted(self.left_out.items()),
            context.source.files[self.file].model_dump(mode="json"),
            context.share,
            context.leaves_out,
            context.encoders_digest,
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


# Ids that a warning names.
FIRST_FLAT = 3


class FlatPictures(Frozen):
    """Rows whose picture has one colour: their number, and the ids of the first ones."""

    rows: int
    first: tuple[str, ...]


class UnitRecord(Frozen):
    """The result of a unit: its shards, and the rows that are left out.

    `encoded`: number of items that were encoded for it. `flat`: by modality, if there are any.
    """

    training: Shard | None = None
    evaluation: Shard | None = None
    rejected: tuple[RejectedRow, ...] = ()
    encoded: int = 0
    flat: dict[Modality, FlatPictures] = Field(default={})

    @property
    def rows(self) -> int:
        """Number of rows, good and bad."""
        shards = (self.training, self.evaluation)
        return sum(shard.rows for shard in shards if shard is not None) + len(self.rejected)


@dataclass(frozen=True)
class Prepared:
    """The results of all units of a dataset, or the `refusals`: reasons why it cannot be prepared.

    `warnings`: sentences about rows that are used. `needed_share`: the `max_bad_share` with which a refused dataset would
    be accepted; None if it is not known, or no row is usable.

    `held_out`: first the shards of files that the user held out, then those of a share.
    """

    shards: tuple[Shard, ...] = ()
    held_out: tuple[Shard, ...] = ()
    rejected: tuple[RejectedRow, ...] = ()
    encoders: dict[str, EncoderIdentity] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    needed_share: float | None = None
