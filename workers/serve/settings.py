"""Settings of the serving application: from the command line, or `args` of a RayService; and its fixed limits."""

from hashlib import sha256
from importlib.metadata import version
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from cmcl.contract import DISTRIBUTION
from cmcl.contract.dataset import Uri
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.modality import Frozen
from workers.serve.auth import read_public_keys

# Of the application in Ray Serve.
APPLICATION = "embeddings"
_LOCAL_POLL_SECONDS = 0.1
# Each poll of S3 costs one listing and one read per model, which are billed.
_REMOTE_POLL_SECONDS = 1.0
Proxies = tuple[IPv4Network | IPv6Network, ...]


class CollectionLimits(NamedTuple):
    """Collections of one owner, rows of one collection, rows of all of them."""

    collections: int
    rows: int
    all_rows: int


class ServeArgs(Frozen):
    """Arguments of the application that a deployment sets; the same in every replica."""

    store: Uri = Field(description="root of the object storage, file:// or s3://")
    replicas: int = Field(default=1, ge=1, le=1000, description="replicas, processes that answer")
    num_cpus: float = Field(default=1, ge=0, le=256, description="Ray CPUs that a replica reserves")
    replicas_per_node: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None,
        description="for a cluster with nodes for replicas and others for encoders: at most so "
        "many are on each; they reserve its `cmcl_replica` and `cmcl_encoder` then, and no CPUs",
    )
    access_public_key: str | None = Field(
        default=None,
        description="Ed25519 public key in PEM, or several: requests need a key that is in the "
        "list signed with one of them; by default no keys are required",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="host names that requests may use without keys, besides "
        "localhost and numeric addresses, or `*` for any; otherwise web pages could reach the endpoint "
        "by their own names",
    )
    trusted_proxies: Proxies = Field(
        default=(),
        description="addresses or networks of proxies that replace or append to X-Forwarded-For, as HAProxy "
        "here does: without keys, the limits of one owner count by the last address in it. By default "
        "the address of the connection counts",
    )
    max_heads_bytes: int = Field(
        default=1 << 30,
        ge=1 << 20,
        description="of a replica's memory for the heads of all versions, shared tensors "
        "counted once; what does not fit is loaded on demand. A version can be swapped if its heads "
        "take at most half of it (CMCL_HEADS_BYTES_MAX of the control plane)",
    )

    watch_queries: bool = Field(
        default=True,
        description="whether replicas add up features of what they embed, to compare them with what a model has "
        "learned. No query is stored, and no sum of fewer than 256",
    )
    encoders: tuple[EncoderSpec, ...] = Field(
        default=(),
        description="for raw items; models bind modalities to them by name. As CMCL_ENCODERS of the control "
        "plane",
    )

    @field_validator("access_public_key")
    @classmethod
    def _must_be_public_keys(cls, value: str | None) -> str | None:
        if value is not None:
            read_public_keys(value)
        return value

    @model_validator(mode="after")
    def _names_of_encoders_differ(self) -> Self:
        names = [encoder.name for encoder in self.encoders]
        if twice := sorted({each for each in names if names.count(each) > 1}):
            raise ValueError(f"encoders has the name {twice[0]!r} more than once")
        return self

    @property
    def identity(self) -> str:
        """Digest of arguments and release: equal where a running application need not be restarted."""
        return sha256(f"{version(DISTRIBUTION)} {self.model_dump_json()}".encode()).hexdigest()[:16]


class ServeSettings(ServeArgs):
    """The arguments, and limits that are the same in every deployment; tests and benchmarks pass others.

    Of each limit that is answered with 429, one owner may hold 4/5, and of several each less, so that another owner
    can always be served.
    """

    # Between two polls of live.json; None: by the kind of store. Announcements are faster where they arrive.
    poll_seconds: float | None = None
    # In one request: 16 MiB of vectors of width 1024. A client sends more in several requests.
    max_rows: int = 4096
    # In one replica, before 429. Each takes a few KiB while it waits.
    max_requests_in_flight: int = 1024
    # In one replica, before 429: some seconds of work for one core.
    max_rows_in_flight: int = 32768
    # 4,096 rows of width 1024 are 64 MiB of JSON at most.
    max_body_bytes: int = 64 << 20
    # Bodies in one replica's memory as far as they have arrived, and then their responses, before 429.
    max_bytes_in_flight: int = 512 << 20
    # For a body to arrive, before 408. HAProxy waits as long for its next byte, and for a client to read (cmcl/haproxy.py).
    body_seconds: float = 30
    # From the headers of a request to its response, before 504; a client may ask for less or more.
    queue_seconds: float = 30
    # How long x-min-model-version waits, before 503: longer than a version takes to arrive at all replicas.
    min_version_wait_seconds: float = 2
    # How long a new replica waits for the store before it takes requests without it, where no other replica answers.
    first_poll_seconds: float = 30
    # Kept for requests that name one; also how many may be loading for the models of one owner, before 429, or 503
    # where a request names none.
    recent_versions: int = 4
    # Hits of one search in a collection.
    max_top_k: int = 1000
    # Payload of one item of a collection, as JSON: a thumbnail, and no file.
    max_payload_bytes: int = 4096
    # In one collection, and in all together, before 507: every replica keeps parts of all indexes in memory.
    max_collection_rows: int = 1_000_000
    max_searched_rows: int = 2_000_000
    # Of one owner, before 507; of all together where no keys are required.
    max_collections: int = 100
    # Of collections and versions, at once in one replica, before 429: each keeps rows or heads in memory.
    max_exports: int = 4

    @model_validator(mode="after")
    def _one_request_fits_its_encoder(self) -> Self:
        for encoder in self.encoders:
            if encoder.max_queued < self.max_rows:
                raise ValueError(
                    f"max_queued of encoder {encoder.name!r} is {encoder.max_queued}, less than max_rows "
                    f"({self.max_rows}): the largest request could never be admitted"
                )
        return self

    @property
    def collection_limits(self) -> CollectionLimits:
        return CollectionLimits(
            self.max_collections,
            self.max_collection_rows,
            self.max_searched_rows,
        )

    @property
    def poll_interval_seconds(self) -> float:
        """`poll_seconds`, or what suits the kind of store."""
        if self.poll_seconds is not None:
            return self.poll_seconds
        return _LOCAL_POLL_SECONDS if self.store.startswith("file:") else _REMOTE_POLL_SECONDS
