"""Settings of the control plane: the only place in service/ that reads the environment.

Every field is the environment variable CMCL_<FIELD>. The table of settings in the documentation is
generated from here, and the Helm chart's environment is checked against it.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from cmcl.contract.encoder import EncoderSpec
from service.launcher_settings import LauncherSettings
from service.owner_settings import OwnerSettings
from service.principal import Scope
from service.setting_values import (
    CommaSeparated,
    Encoders,
    EncryptionKeys,
    OperatorsKey,
    PageAddress,
    Proxies,
    ServerAddress,
    SigningKey,
)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")

LogLevel = Literal["debug", "info", "warning", "error"]


def _local_store() -> str:
    return (Path.cwd() / ".cmcl" / "store").as_uri()


class Settings(LauncherSettings, OwnerSettings):
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
        description="address to listen on; 0.0.0.0 or :: where others than this machine connect",
    )
    trusted_proxies: Proxies = Field(
        default=("127.0.0.1",),
        description="comma-separated addresses or networks of reverse proxies whose forwarded client "
        "addresses are trusted",
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
        description="Ed25519 private key in PEM that signs the key snapshot for the embeddings endpoint; "
        "without it, no snapshot is written",
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
    oidc_client_id: str | None = Field(
        default=None,
        description="client id at the issuer, with which browsers sign in to the page (authorization code "
        "flow with PKCE); without it, only keys can sign in",
    )
    oidc_client_secret: SecretStr | None = Field(
        default=None,
        description="secret of that client; without it, it is a public client, and encryption_key is required",
    )
    oidc_scopes: CommaSeparated = Field(
        default=("openid", *(f"cmcl:{scope}" for scope in Scope)),
        description="comma-separated scopes that the page asks the issuer for; must include openid",
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

    @property
    def encoders_by_name(self) -> dict[str, EncoderSpec]:
        """The declared encoders."""
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
    def _tokens_have_an_audience(self) -> Self:
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError(
                "CMCL_OIDC_AUDIENCE is missing: tokens for other services would be accepted"
            )
        return self

    @model_validator(mode="after")
    def _browsers_can_sign_in(self) -> Self:
        if not self.oidc_client_id:
            return self
        missing = [
            variable
            for variable, is_set in (
                ("CMCL_OIDC_ISSUER", self.oidc_issuer),
                ("CMCL_PAGE_URL", self.page_url),
                (
                    "CMCL_OIDC_CLIENT_SECRET or CMCL_ENCRYPTION_KEY",
                    self.oidc_client_secret or self.encryption_key,
                ),
            )
            if not is_set
        ]
        if missing:
            raise ValueError(f"CMCL_OIDC_CLIENT_ID is set, but not {', '.join(missing)}")
        if "openid" not in self.oidc_scopes:
            raise ValueError("CMCL_OIDC_SCOPES must include openid")
        return self
