"""Files on their way to the service."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import Field

from cmcl.types.answer import Answer


class UploadPart(Answer):
    """One part as it arrived."""

    number: int
    bytes: int
    sha256: str


class Presigned(Answer):
    """A signed address to which the file is written directly."""

    method: str
    url: str = Field(repr=False)
    headers: dict[str, str] = Field(repr=False)
    expires_at: datetime


class Upload(Answer):
    """An upload; once complete, its `uri` can stand in a dataset."""

    id: str
    filename: str
    bytes: int
    sha256: str | None = None
    state: str = Field(description="open, completing or complete")
    parts: list[UploadPart] = Field(default_factory=list)
    part_bytes_min: int = 1
    part_bytes_max: int = 16 * 2**20
    uri: str | None = None
    presigned: Presigned | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True)
class UploadProgress:
    """How much of a file has arrived."""

    path: Path
    sent: int
    total: int
