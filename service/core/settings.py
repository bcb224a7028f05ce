"""Settings of the control plane: the only place in service/ that reads the environment.

Every field is the environment variable CMCL_<FIELD>. The table of settings in the documentation is
generated from here, and the Helm chart's environment is checked against it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cmcl.contract.api.access import QuotaName
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.methods import Priority
from cmcl.contract.modality import Frozen
from service.core.principal import DEFAULT_OWNER
from service.core.setting_values import (
    CommaSeparated,
    Encoders,
    EncryptionKeys,
    JsonObject,
    OperatorsKey,
    PageAddress,
    Proxies,
    QueueName,
    RuntimeEnv,
    ServerAddress,
    SigningKey,
    must_be_a_queue,
    read_pod_templates,
    read_signing_key,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_LOOPBACK = ("127.0.0.1", "::1", "localhost")

LogLevel = Literal["debug", "info", "warning", "error"]


def _local_store() -> str:
    return (Path.cwd() / ".cmcl" / "store").as_uri()


_PLACEHOLDER = "{owner}"


class OwnerGrant(Frozen):
    """What one owner gets in place of the settings for all owners. A field that is left out changes nothing."""

    running_jobs: int | None = Field(
        default=None,
        ge=0,
        description="maximum attempts at a time, in place of running_jobs_per_owner",
    )
    models: int | None = Field(
        default=None, ge=0, description="maximum models, in place of models_per_owner"
    )
    upload_bytes: int | None = Field(
        default=None,
        ge=0,
        description="maximum bytes of all uploads, in place of upload_bytes_per_owner_max",
    )
    high_priority: bool = Field(
        default=False,
        description="whether models of priority high start before the models of other owners",
    )
    queue: QueueName | None = Field(
        default=None, description="Kueue LocalQueue, in place of kuberay_queue"
    )


class Settings(BaseSettings):
    """Read once at startup and passed on as an object."""

    model_config = SettingsConfigDict(env_prefix="CMCL_", frozen=True, extra="ignore")

    database_url: str = Field(
        default="sqlite:///.cmcl/cmcl.db",
        description="SQLAlchemy URL: sqlite:///path or postgresql://user:password@host/name",
    )
    store_uri: str = Field(
        default_factory=_local_store,
        description="root of object storage: file:///folder or s3://bucket/prefix; default: the folder "
        ".cmcl/store",
    )
    allowed_prefixes: CommaSeparated = Field(
        default=(),
        description="comma-separated URI prefixes that users' shards must lie under; if empty, no dataset "
        "is accepted",
    )
    host: str = Field(
        default="127.0.0.1",
        description="address to listen on, behind a proxy; another one than loopback requires behind_proxy",
    )
    behind_proxy: bool = Field(
        default=False,
        description="whether a proxy that bounds heads, bodies and connections stands before `host`, such as "
        "`python -m cmcl.service_proxy` in another container",
    )
    trusted_proxies: Proxies = Field(
        default=("127.0.0.1",),
        description="comma-separated addresses or networks of proxies that connect to the service, whose "
        "X-Forwarded-For is the address of the client",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on")
    max_attempts: int = Field(
        default=3,
        ge=1,
        description="attempts before a job fails; more where nodes are often taken away",
    )
    encoders: Encoders = Field(
        default=(),
        description="encoders that models can bind modalities to: a JSON list of declarations, or the path of "
        "a file with it (see An encoder below)",
    )
    queue_deadline_seconds: float = Field(
        default=3600,
        gt=0,
        description="time limit for the cluster to start an attempt that it accepted; time in a queue of Kueue does not "
        "count",
    )
    run_deadline_seconds: float = Field(
        default=86400,
        gt=0,
        description="time limit for an attempt from its start to its candidate; raise it for datasets that train longer",
    )
    upload_bytes_max: int = Field(
        default=5 * 2**30,
        ge=1,
        description="maximum size of an uploaded file; raise it with the disk for larger datasets",
    )
    auth: Literal["on", "off"] = Field(
        default="on",
        description="whether requests need a key; off is permitted only if host is a loopback address",
    )
    allowed_hosts: CommaSeparated = Field(
        default=(),
        description="comma-separated host names, besides loopback names, that requests may use while auth "
        "is off. Protects against DNS rebinding by web pages",
    )
    admin_key: OperatorsKey | None = Field(
        default=None,
        description="a key with every permission, for bootstrapping; at least 32 characters",
    )
    page: Literal["on", "off"] = Field(
        default="on",
        description="whether the page is served under /ui; off: /ui is answered like any unknown path",
    )
    page_url: PageAddress = Field(
        default="",
        description="public address of the page, such as https://cmcl.example.org/ui: required to sign in "
        "with an OpenID issuer, and where a proxy changes the Host header. If empty, it is taken from "
        "each request",
    )
    metrics_key: OperatorsKey | None = Field(
        default=None,
        description="bearer token that scrapers must send to /metrics; at least 32 characters. Without "
        "it, anyone who can reach the port can read model names there",
    )
    snapshot_signing_key: SigningKey | None = Field(
        default=None,
        description="Ed25519 private key in PEM that signs the key snapshot for the embeddings endpoint and "
        "receipts of erased rows; without it, no snapshot is written and receipts are not signed",
    )
    encryption_key: EncryptionKeys | None = Field(
        default=None,
        description="base64 of 32 random bytes that encrypts webhook secrets in the database, or several "
        "separated by commas: the first encrypts, all decrypt. Without it, secrets are stored "
        "unencrypted",
    )
    heads_bytes_max: int = Field(
        default=512 << 20,
        ge=1,
        description="maximum size of the heads of one version with every modality learned; a model, "
        "branch, dataset or candidate above it is rejected. Should be at most half of the "
        "replicas' `max_heads_bytes`, because a swap holds both the old and the new version",
    )
    oidc_issuer: str | None = Field(
        default=None, description="issuer of bearer tokens that are accepted besides keys"
    )
    oidc_audience: str | None = Field(
        default=None, description="required audience of the tokens; required with an issuer"
    )
    oidc_owner_claim: str = Field(
        default="cmcl_owner", description="token claim that names the owner"
    )
    embeddings_url: ServerAddress = Field(
        default="",
        description="address of the embeddings endpoint, which is notified when the live version changes; "
        "if empty, replicas find out by polling",
    )
    webhook_prefixes: CommaSeparated = Field(
        default=(),
        description="comma-separated URL prefixes that webhooks must lie under; if empty, any public "
        "https address is permitted",
    )
    log_level: LogLevel = Field(
        default="info", description="minimum level of log records; debug to look for a fault"
    )
    owners: JsonObject[str, OwnerGrant] = Field(
        default={},
        description="grants to single owners, as a JSON object of owner and an object with any of "
        + ", ".join(OwnerGrant.model_fields)
        + " (see A grant below)",
    )
    running_jobs_per_owner: int = Field(
        default=0,
        ge=0,
        description="maximum attempts of one owner at a time; further ones wait. 0: unlimited, and owners share "
        "what there is equally",
    )
    models_per_owner: int = Field(
        default=500,
        ge=1,
        description="maximum models of one owner, counting branches and deleted models created within the "
        "last hour; a further one is answered with 409. The operator is not limited",
    )
    upload_bytes_per_owner_max: int = Field(
        default=0,
        ge=0,
        description="maximum total bytes of one owner's uploads, from their creation until they are "
        "removed; concurrent creations may exceed it. 0: unlimited",
    )
    kuberay_queue: str = Field(
        default="",
        description="Kueue LocalQueue in which RayJobs wait; without it they start at once. {owner} in it stands for "
        "the owner of the job",
    )
    launcher: Literal["ray", "kuberay"] = Field(
        default="ray",
        description="how attempts run: ray, with resident ranks on one Ray cluster, or kuberay, each as a RayJob with "
        "its own cluster",
    )
    ray_address: ServerAddress = Field(
        default="http://127.0.0.1:8265",
        description="address of Ray's dashboard, where jobs are submitted",
    )
    attempts_at_once: int | None = Field(
        default=None,
        ge=0,
        description="attempts that are submitted and have not ended, over all owners; further jobs wait in the "
        "database. 0: unlimited. Default: with the ray launcher as many as the CPUs, GPUs and memory of the "
        "cluster's nodes suffice for, at least 1; with the kuberay launcher unlimited where Kueue queues them, "
        "else 16. Set it where the nodes of a Ray cluster are added as needed",
    )
    ranks: int = Field(
        default=1,
        ge=1,
        description="training processes of one attempt; more where one GPU or node is too slow for a dataset",
    )
    min_ranks: int | None = Field(
        default=None,
        ge=1,
        description="minimum ranks with which an attempt continues after losing some; with the ray "
        "launcher it also starts with fewer if there is no room for all. Default: all ranks "
        "are required",
    )
    gpus_per_rank: float = Field(
        default=0, ge=0, description="GPUs for each rank; 0 trains on CPUs"
    )
    ranks_idle_seconds: float = Field(
        default=1800,
        ge=0,
        description="ranks that stay on a Ray cluster exit and free their resources after this long "
        "without an attempt; 0: never",
    )
    prepare_workers: int = Field(
        default=4,
        ge=1,
        description="with the kuberay launcher, CPUs of the cluster that prepares datasets, in pods like those "
        "of ranks; each reads or encodes one part of a dataset at a time",
    )
    prepare_gpus_per_worker: float = Field(
        default=0, ge=0, description="with the kuberay launcher, GPUs for each of these CPUs"
    )
    prepare_memory_per_pod: int = Field(
        default=0,
        ge=0,
        description="with the kuberay launcher, bytes of memory that parts of datasets in work may reserve together in "
        "each of these pods; the rest is for Ray and encoders. 0: the pod's limit",
    )
    runtime_env: RuntimeEnv = Field(
        default={},
        description="Ray runtime environment of attempts and of preparation, as a JSON object",
    )
    kuberay_image: str = Field(
        default="", description="image of their pods; required with the kuberay launcher"
    )
    kuberay_release: str = Field(
        default="",
        max_length=63,
        description="their label app.kubernetes.io/instance, which distinguishes several installations",
    )
    kuberay_owner: str = Field(
        default="",
        description="ConfigMap in that namespace; when it is deleted, Kubernetes deletes the RayJobs too",
    )
    kuberay_service_account: str = Field(
        default="default", description="service account of their pods; set it for workload identity"
    )
    kuberay_priority_classes: JsonObject[Priority, str] = Field(
        default={},
        description="Kueue WorkloadPriorityClass for each model priority, as a JSON object with low, "
        "normal and high; a missing one means no class",
    )
    kuberay_ranks_per_pod: int = Field(
        default=1, ge=1, description="ranks that share a pod; as many as a node has GPUs"
    )
    kuberay_gpu_resource: str = Field(
        default="nvidia.com/gpu",
        description="resource name with which pods request GPUs; another one for MIG slices or other vendors",
    )
    kuberay_pod_template: Path | None = Field(
        default=None,
        description="YAML file with pod templates `head` and `workers`, merged over ours, and `submitter`",
    )

    kuberay_submission_mode: Literal["HTTPMode", "K8sJobMode", "SidecarMode"] = Field(
        default="HTTPMode", description="how KubeRay submits the command to Ray"
    )

    def signing_key(self) -> "Ed25519PrivateKey | None":
        pem = self.snapshot_signing_key
        return None if pem is None else read_signing_key(pem.get_secret_value())

    @property
    def encoders_by_name(self) -> dict[str, EncoderSpec]:
        return {encoder.name: encoder for encoder in self.encoders}

    @model_validator(mode="after")
    def _network_needs_auth(self) -> Self:
        if self.auth == "off" and self.host not in _LOOPBACK:
            raise ValueError(
                f"CMCL_AUTH is off and CMCL_HOST is {self.host!r}: anyone on the network would have "
                f"full access; set CMCL_AUTH to on, or CMCL_HOST to one of {', '.join(_LOOPBACK)}"
            )
        return self

    @model_validator(mode="after")
    def _network_needs_a_proxy(self) -> Self:
        if self.host not in _LOOPBACK and not self.behind_proxy:
            raise ValueError(
                f"CMCL_HOST is {self.host!r}, and nothing there bounds what a client without a key may cost: set "
                "CMCL_HOST to 127.0.0.1 and start `python -m cmcl.service_proxy` before it, or, if a proxy "
                "stands before it, CMCL_BEHIND_PROXY to true"
            )
        return self

    @model_validator(mode="after")
    def _tokens_have_an_audience(self) -> Self:
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError(
                "CMCL_OIDC_AUDIENCE is missing: tokens for other services would be accepted"
            )
        return self

    def grant(self, owner: str) -> OwnerGrant:
        return self.owners.get(owner, OwnerGrant())

    def limit(self, owner: str, quota: QuotaName) -> int | None:
        granted: int | None = getattr(self.grant(owner), quota, None)
        if granted is not None:
            return granted
        everyones: dict[QuotaName, int | None] = {
            "running_jobs": self.running_jobs_per_owner,
            "models": self.models_per_owner,
            "upload_bytes": self.upload_bytes_per_owner_max,
        }
        return everyones[quota] or None

    def queue_of(self, owner: str) -> str:
        """The LocalQueue in which an owner's RayJobs wait; empty without one."""
        return self.grant(owner).queue or self.kuberay_queue.replace(_PLACEHOLDER, owner)

    def cluster_priority(self, owner: str, priority: Priority) -> Priority:
        """The priority with which a queue of the cluster ranks an attempt.

        Where owners share a queue, `high` would pass other owners; it is the operator's to grant.
        """
        granted = self.grant(owner)
        has_own_queue = granted.queue is not None or _PLACEHOLDER in self.kuberay_queue
        is_capped = priority == "high" and not (granted.high_priority or has_own_queue)
        return "normal" if is_capped else priority

    @field_validator("kuberay_queue")
    @classmethod
    def _must_be_a_queue(cls, value: str) -> str:
        if value:
            must_be_a_queue(value.replace(_PLACEHOLDER, DEFAULT_OWNER))
        return value

    @model_validator(mode="after")
    def _check_ranks(self) -> Self:
        if self.fewest_ranks > self.ranks:
            raise ValueError(
                f"CMCL_MIN_RANKS is {self.min_ranks}; it must be from 1 to CMCL_RANKS, "
                f"which is {self.ranks}"
            )
        return self

    @model_validator(mode="after")
    def _check_rayjobs(self) -> Self:
        if self.launcher != "kuberay":
            return self
        if not self.kuberay_image:
            raise ValueError("CMCL_KUBERAY_IMAGE is missing: the pods of RayJobs need an image")
        try:
            read_pod_templates(self.kuberay_pod_template)
        except ValueError as error:
            raise ValueError(f"CMCL_KUBERAY_POD_TEMPLATE: {error}") from error
        return self

    @property
    def fewest_ranks(self) -> int:
        """`min_ranks`, resolved."""
        return self.ranks if self.min_ranks is None else self.min_ranks
