"""A pre-flight: predicts how a dataset would be learned before it is posted."""

from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.dataset import ShardRef, Uri
from cmcl.contract.modality import Frozen


class AskedShard(ShardRef):
    """A file as the user names it. `address`: its storage address, if it is an upload."""

    address: Uri | None = None


class AskedShards(Frozen):
    """The worker's input, as an object because a command line would be too short.

    `allowed_prefixes`: permitted prefixes of users' addresses, checked again when they are read.
    """

    shards: tuple[AskedShard, ...] = Field(min_length=1)
    allowed_prefixes: tuple[str, ...]


class _Answer(BaseModel):
    """Unknown fields are ignored: workers may be newer than the service."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RowFindings(_Answer):
    """Problems in the raw rows of one side; the last four counts refer to finite rows."""

    rows: int = Field(description="rows read: all, or a sample of a large dataset")
    width: int
    expected_width: int
    nan: int = Field(description="values")
    infinite: int = Field(description="values")
    zero_rows: int = Field(description="rows")
    duplicate_rows: int = Field(description="rows that equal an earlier one")
    constant_columns: int
    rank_one: bool = Field(description="all rows are multiples of one")


class HeadMeeting(_Answer):
    """How a dataset relates to one head. Shares from 0 to 1."""

    protected_share: float | None = Field(
        description="share of its energy inside the protected input span"
    )
    familiarity: float | None = Field(
        description="how much more of its features is in that span than of random directions; "
        "low if another encoder produced them, null without earlier data"
    )
    moment_distance: float | None = Field(
        description="distance of its features from the earlier ones"
    )
    learnable_share: float | None = Field(description="share of its energy on free entries")
    free_share: float | None = Field(description="share of free entries now")
    free_share_after: float | None = Field(description="share of free entries after it is learned")


class HeadAnswer(_Answer):
    """The result for one modality."""

    moments: HeadMeeting
    open_share: float | None = Field(
        description="share of entries that the model's method would let this dataset change, 0 to 1"
    )


class Outlook(_Answer):
    """The result: whether and why it would be rejected, problems, and remaining capacity."""

    version: int = Field(description="version from which the dataset would be learned")
    pair: tuple[str, str]
    refusals: tuple[str, ...] = Field(description="why it would be rejected; empty if it would not")
    findings: dict[str, RowFindings] = Field(description="by modality; missing if unreadable")
    heads: dict[str, HeadAnswer] = Field(description="by modality; empty if it would be rejected")
    advice: tuple[str, ...] = Field(description="advice on problems and scarce capacity")


class PreflightAnswer(_Answer):
    """The worker's output, written atomically: the outlook, or an error."""

    outlook: Outlook | None = None
    error: str | None = None
    retry_can_help: bool = False
