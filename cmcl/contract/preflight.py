"""A pre-flight: what a dataset that was not posted yet would meet. What is asked, what is answered."""

from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.dataset import ShardRef, Uri
from cmcl.contract.modality import Frozen


class AskedShard(ShardRef):
    """A file as the user names it. `address`: where it lies, if it is an upload in our own store."""

    address: Uri | None = None


class AskedShards(Frozen):
    """Written for the worker before it is told: a command line would be too short for them.

    `allowed_prefixes`: what users' own addresses must not leave, looked at again as they are read.
    """

    shards: tuple[AskedShard, ...] = Field(min_length=1)
    allowed_prefixes: tuple[str, ...]


class _Answer(BaseModel):
    """Workers may be newer than the service: what they say beyond this is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RowFindings(_Answer):
    """What is odd about the raw rows of one side; the last four counts are of finite rows."""

    rows: int = Field(description="that were looked at: all, or some of a large dataset")
    width: int
    expected_width: int
    nan: int = Field(description="values")
    infinite: int = Field(description="values")
    zero_rows: int = Field(description="rows")
    duplicate_rows: int = Field(description="rows that equal an earlier one")
    constant_columns: int
    rank_one: bool = Field(description="all rows are multiples of one")


class HeadMeeting(_Answer):
    """What a dataset would meet at one head. Shares from 0 to 1."""

    protected_share: float | None = Field(description="its energy inside the protected input span")
    familiarity: float | None = Field(
        description="how much more of its features lies in that span than of random directions; "
        "low where another encoder made them, none without earlier data"
    )
    moment_distance: float | None = Field(description="of its features from the earlier ones")
    learnable_share: float | None = Field(description="its own energy on free entries")
    free_share: float | None = Field(description="free entries now")
    free_share_after: float | None = Field(description="free entries once it was learned")


class HeadAnswer(_Answer):
    """One modality."""

    moments: HeadMeeting
    open_share: float | None = Field(
        description="entries that the model's method would let this dataset move, 0 to 1"
    )


class Outlook(_Answer):
    """The answer: whether it would be refused and why, what is odd, what is left to learn with."""

    version: int = Field(description="that the dataset would be learned on top of")
    pair: tuple[str, str]
    refusals: tuple[str, ...] = Field(description="why it would be refused; empty if it would not")
    findings: dict[str, RowFindings] = Field(description="by modality; none where unreadable")
    heads: dict[str, HeadAnswer] = Field(description="by modality; empty if it would be refused")
    advice: tuple[str, ...] = Field(description="sentences about what is odd or scarce")


class PreflightAnswer(_Answer):
    """What the worker leaves, complete or not at all: the outlook, or why there is none."""

    outlook: Outlook | None = None
    error: str | None = None
    retry_can_help: bool = False
