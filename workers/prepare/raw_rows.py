"""Types of the plan and of the readers of raw rows: sides, files, units, rows.

Raw rows are read in two steps. `plan.plan` lists the units of all files: ranges of bytes or rows.
`unit_reader.UnitReader` reads one unit. Both run code that parses users' bytes in a `Child` of `workers/sandbox`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cmcl.contract.dataset import ShardRef, Uri
from cmcl.contract.encoder import EncoderSpec, FeatureWidth
from cmcl.contract.modality import Frozen, Modality, ModalityPair
from cmcl.contract.model import ModelSpec

if TYPE_CHECKING:
    from workers.sandbox.items import Item

ROWS_IN_A_UNIT = 1024

RawForm = Literal["jsonl", "csv", "parquet", "tar"]


class SideSpec(Frozen):
    """One side of the pair. `encoder` None: raw rows contain features of `width` numbers."""

    modality: Modality
    width: FeatureWidth
    encoder: EncoderSpec | None = None


class RawSource(Frozen):
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

    `file`: index into `RawSource.files`. `first_line`: of its first row, in forms of lines. `start`, `stop`: bytes of the file; 0 for Parquet, whose rows
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
class Plan:
    """The plan of a dataset: `units` of raw rows, or `feature_files` as indices into the files.

    The files of a dataset are all raw or all features. `rows`: number of raw rows; 0 for features, whose
    number is unknown before they are read.
    """

    units: list[RawUnit]
    feature_files: list[int]
    rows: int


@dataclass(frozen=True)
class Row:
    """One good row. `position`: in its file.

    `key_a`, `key_b`: digests of the raw bytes of both items (32 bytes). Rows are held out by `key_a`;
    items with equal keys are equal. An item is None if the reader does not decode it.
    """

    position: int
    id: str
    label: str | None
    item_a: "Item | None"
    item_b: "Item | None"
    key_a: bytes
    key_b: bytes


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
