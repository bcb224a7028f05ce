"""A dataset of paired features: its shards, and its manifest once it is verified."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cmcl.contract.modality import Blake3, Frozen, ModalityPair, ModelName, Sha256

Uri = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
FileFormat = Literal["parquet", "arrow", "npz", "safetensors", "hdf5"]


class ShardRef(Frozen):
    """One file of rows as the user names it. The digest is optional, and checked when given."""

    uri: Uri = Field(examples=["s3://captures/2026-11/pairs-000.parquet"])
    sha256: Sha256 | None = None


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


class DatasetManifest(Frozen):
    """A verified dataset: immutable, written to `datasets/<dataset>/manifest.json`.

    Training shards that are Parquet stay in the user's storage; those that were converted, or split by
    `evaluation_share`, are stored beside this manifest until the dataset is learned.
    Evaluation shards are held out: they are copied beside this manifest, because later versions
    are measured on them.
    """

    dataset: str
    model: ModelName
    name: str
    pair: ModalityPair
    shards: tuple[Shard, ...] = Field(min_length=1)
    evaluation_shards: tuple[Shard, ...] = ()

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)
