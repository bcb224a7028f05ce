"""A version of a model: all heads, the memory of moments, and the proof of what did not move."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from workers.contract.modality import Frozen, ModalityPair, ModelName, Sha256
from workers.contract.model import ModelSpec


class FileEntry(Frozen):
    """A file that belongs to a version; every reader checks the digest itself."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Drift(Frozen):
    """How far the scores of one earlier dataset moved, from its moments alone.

    Relative: root mean square change of x_uᵀ W_uᵀ W_v x_v over *all* row combinations, divided by
    the root mean square of these scores in the version that learned the dataset.
    """

    since_learned: float = Field(ge=0)
    against_parent: float = Field(ge=0)


class Recall(Frozen):
    """Share of held-out queries whose partner is retrieved; both directions averaged.

    `at_1` counts the same label or the same partner feature as a hit, `at_10` the same partner
    feature (texts repeat, so the row number alone would be unfair).
    """

    rows: int = Field(ge=1)
    at_1: float = Field(ge=0, le=1)
    at_10: float = Field(ge=0, le=1)


class LearnedDataset(Frozen):
    """One line of a version's ledger: what it learned, in which version, and where the moments are."""

    dataset: str
    name: str
    pair: ModalityPair
    rows: int = Field(ge=1)
    version: int = Field(ge=1)
    moments: FileEntry
    shard_digests: tuple[Sha256, ...]


class Protection(Frozen):
    """How much of one head was closed to this update."""

    input_rank: int = Field(ge=0, description="protected directions of the features")
    input_width: int = Field(ge=1)
    output_rank: int = Field(ge=0, description="protected directions of the embeddings")
    output_width: int = Field(ge=1)
    blocked_share: float = Field(ge=0, le=1, description="share of entries that could not move")


class VersionReport(Frozen):
    """What a training job found out about the version that it made."""

    final_loss: float
    updates: int = Field(ge=0)
    ranks: int = Field(ge=1)
    seconds: dict[str, float] = Field(default={}, description="where the time of the job went")
    protection: dict[str, Protection] = Field(default={}, description="by modality")
    drift: dict[str, Drift] = Field(default={}, description="by earlier dataset")
    evaluation: dict[str, Recall] = Field(
        default={}, description="by dataset that has evaluation shards, this one included"
    )


class VersionManifest(Frozen):
    """Written last: once it can be read, every file that it names is in place.

    `files` maps file name to digest; the files lie beside the manifest. The moments of single
    datasets lie under `datasets/<dataset>/` instead and are named in `learned`.
    """

    model: ModelName
    version: int = Field(ge=1)
    parent: int | None = Field(default=None, description="None: grown from the seed alone")
    job: str
    attempt: int = Field(ge=1)
    dataset: str
    spec: ModelSpec
    code_version: str
    created_at: datetime
    files: dict[str, FileEntry]
    learned: tuple[LearnedDataset, ...] = Field(min_length=1)
    report: VersionReport


class LivePointer(BaseModel):
    """`models/<model>/live.json`: which version answers. Generations only grow.

    Unknown fields are ignored, so that a newer control plane can tell older replicas more.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int = Field(ge=1)
    version: int = Field(ge=1)
