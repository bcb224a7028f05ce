"""What users post: a dataset, or more shards for one, and the fingerprints by which a dataset is recognized."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, FailFast, Field
from pydantic_core import PydanticCustomError

from cmcl.contract.dataset import ShardRef
from cmcl.contract.modality import Frozen, ModalityPair, ModelName
from service.database.rows import Fingerprints

MOST_SHARDS = 10_000


def _check_length(value: object) -> object:
    """Refuse a list that is too long before its items are validated."""
    if isinstance(value, list | tuple) and len(value) > MOST_SHARDS:
        raise PydanticCustomError(
            "too_long", f"there are {len(value)} shards, permitted are {MOST_SHARDS}"
        )
    return value


# Validation ends at the first invalid item: a list of thousands would give as many errors.
Shards = Annotated[
    tuple[ShardRef, ...],
    Field(max_length=MOST_SHARDS),
    FailFast(),
    BeforeValidator(_check_length),
]


class NewShards(Frozen):
    """Shards to add to an open dataset."""

    shards: Shards = ()
    evaluation_shards: Shards = Field(
        default=(), description="held out: measured on, never trained on"
    )

    @property
    def uris(self) -> list[str]:
        """The addresses of both lists."""
        return [ref.uri for ref in (*self.shards, *self.evaluation_shards)]


class NewDataset(NewShards):
    """A dataset as it is posted. It is stored unchanged, so that its job can be retried."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "street-scenes",
                    "name": "captions-2026-11",
                    "pair": {"first": "image", "second": "text"},
                    "shards": [{"uri": "s3://captures/2026-11/pairs-000.parquet"}],
                    "evaluation_share": 0.1,
                }
            ]
        }
    )

    model: ModelName
    name: ModelName = Field(description="for people; need not be unique")
    pair: ModalityPair
    evaluation_share: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="share of the rows in `shards` that is held out, chosen by their feature_a: the same "
        "rows in any order, also after more shards were added",
    )
    sealed: bool = Field(
        default=True,
        description="false: leave it open for more shards; its job starts once it is sealed",
    )

    @property
    def fingerprint(self) -> str:
        """Equal for the same addresses and the same model, whatever the name."""
        content = self.model_dump(mode="json", exclude={"name", "sealed"})
        if self.evaluation_share is None:
            del content["evaluation_share"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def fingerprints(self, contents: Mapping[str, str]) -> Fingerprints:
        """Fingerprints by address and by content; the second is equal for the same files in other uploads.

        `contents`: SHA-256 by address, of complete uploads.
        """
        if not contents:
            return Fingerprints(self.fingerprint)
        by_content = self.model_copy(
            update={
                "shards": _by_content(self.shards, contents),
                "evaluation_shards": _by_content(self.evaluation_shards, contents),
            }
        )
        return Fingerprints(self.fingerprint, by_content.fingerprint)


def _by_content(refs: Shards, contents: Mapping[str, str]) -> Shards:
    """Replace addresses of uploads by digests. A reference's own digest is dropped where it says the same."""
    return tuple(
        ShardRef(
            uri=f"sha256:{contents[ref.uri]}",
            sha256=None if ref.sha256 == contents[ref.uri] else ref.sha256,
        )
        if ref.uri in contents
        else ref
        for ref in refs
    )
