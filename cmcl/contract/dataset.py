"""A dataset of paired features: its shards, and its manifest once it is verified."""

from typing import Annotated, Literal, Self
from urllib.parse import unquote

from pydantic import Field, StringConstraints, model_validator

from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.modality import (
    Blake3,
    FileEntry,
    Frozen,
    Modality,
    ModalityPair,
    ModelName,
    Sha256,
)

Uri = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
# In the JSON of a sample in a tar: the largest number of texts in a list, and the field that says where the user finds
# the row.
MOST_TEXTS_OF_ITEM = 1000
SOURCE = "__source__"
# How a folder of raw pairs is recognised: suffixes by what a file is, modalities that are texts by their name, and files that
# list rows, the first one that is there. For the client (cmcl/client/raw_folder.py) and the page (folder.js).
SUFFIXES: dict[str, tuple[str, ...]] = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"),
    "audio": (".wav", ".flac", ".ogg", ".mp3", ".m4a"),
    "video": (".mp4", ".webm", ".mkv", ".mov"),
    "text": (".txt",),
}
TEXT_NAMES = ("caption", "captions", "description", "sentence", "text", "title")
MANIFESTS = ("metadata.jsonl", "metadata.csv", "manifest.jsonl", "manifest.csv")
FileFormat = Literal["parquet", "arrow", "npz", "safetensors", "jsonl", "csv", "tar"]


class ShardRef(Frozen):
    """One file of rows as the user names it. The digest is optional, and checked when given."""

    uri: Uri = Field(examples=["s3://captures/2026-11/pairs-000.parquet"])
    sha256: Sha256 | None = None
    name: str | None = Field(
        default=None,
        max_length=128,
        exclude_if=lambda name: name is None,
        description="what tables and messages call it; by default the file name of an upload, or the address",
    )

    @property
    def file_name(self) -> str:
        """Its name, or the last part of its address."""
        last = self.uri.rpartition("/")[2]
        return self.name or (unquote(last) if self.uri.startswith("file:") else last)


class SourceFile(Frozen):
    """The file from which a shard was created, as it was when read."""

    uri: Uri = Field(description="as the user named it")
    sha256: Sha256
    bytes: int = Field(ge=1)
    format: FileFormat


class Shard(Frozen):
    """One Parquet file after it was read and verified.

    `sha256`: its identity, which users can compute. `blake3`: checked by readers, at a third of the
    cost; None if it was verified by an older release. `source`: the original, if it was converted or
    split; None for the user's own file.
    """

    uri: Uri
    sha256: Sha256
    blake3: Blake3 | None = None
    bytes: int = Field(ge=1)
    rows: int = Field(ge=1)
    source: SourceFile | None = None


class RejectedRow(Frozen):
    """A row that was left out, and why."""

    id: str | None = Field(description="None: the row has no readable id")
    file: Uri = Field(description="address of the file that names it")
    row: int = Field(ge=0, description="its position in the file")
    place: str = Field(
        description="where the user finds it: `metadata.csv line 202, trunc.png`, `birds.tar, jay.png`, "
        "`pairs.parquet row 17`"
    )
    reason: str


class RejectedRows(Frozen):
    """The rows of a dataset that were left out: `datasets/<dataset>/rejected.jsonl` lists all of them."""

    rows: int = Field(ge=1)
    file: FileEntry
    first: tuple[RejectedRow, ...] = Field(max_length=20, description="the first ones")


class DatasetManifest(Frozen):
    """A verified dataset: immutable, written to `datasets/<dataset>/manifest.json`.

    Training shards that are Parquet stay in the user's storage; those that were converted, encoded, or split by
    `evaluation_share`, are stored beside this manifest until the dataset is learned.
    Evaluation shards are held out: they are copied beside this manifest, because later versions
    are measured on them. A dataset that is measured only has no other shards.
    """

    dataset: str
    model: ModelName
    name: str
    pair: ModalityPair
    shards: tuple[Shard, ...]
    evaluation_shards: tuple[Shard, ...] = ()
    evaluate_only: bool = Field(
        default=False,
        exclude_if=lambda evaluate_only: not evaluate_only,
        description="true: nothing is learned of it",
    )
    encoders: dict[Modality, EncoderIdentity] = Field(
        default={},
        description="by modality: the encoder that computed its features, or that the user declared for "
        "features; missing: undeclared",
    )
    rejected: RejectedRows | None = None
    warnings: tuple[str, ...] = Field(
        default=(), exclude_if=lambda warnings: not warnings, description="about rows that are used"
    )

    @model_validator(mode="after")
    def _must_have_rows_for_its_purpose(self) -> Self:
        if self.evaluate_only:
            if self.shards or not self.evaluation_shards:
                raise ValueError("evaluate_only: it has evaluation_shards, and no other shards")
        elif not self.shards:
            raise ValueError("shards: at least 1 is needed to learn a dataset")
        return self

    @property
    def rows(self) -> int:
        """Rows to train on."""
        return sum(shard.rows for shard in self.shards)

    @property
    def evaluation_rows(self) -> int:
        """Rows that are held out."""
        return sum(shard.rows for shard in self.evaluation_shards)


class EvaluationDataset(Frozen):
    """A dataset that a model measures and never learns."""

    dataset: str
    name: str
    pair: ModalityPair
