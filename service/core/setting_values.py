"""Types of settings with their own parsing and validation."""

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from cmcl.contract.encoder import EncoderSpec

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Name = TypeVar("Name")
Value = TypeVar("Value")

_SHORTEST_KEY = 32
ENCRYPTION_KEY_BYTES = 32
# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
_QUEUE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_POD_TEMPLATES = ("head", "workers", "submitter")
_SERVER = re.compile(r"https?://[^\s/?#]+/?")
_PAGE = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")


def _split_at_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _read_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        read = json.loads(value) if value.strip() else {}
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise ValueError('it is not a JSON object, such as {"name": "value"}')  # noqa: TRY004
    return read


def _read_encoders(value: object) -> object:
    """The declarations in JSON, or in the file at that path."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text and not text.startswith("["):
        try:
            text = Path(text).read_text()
        except OSError as error:
            raise ValueError(
                f"{value!r} is neither a JSON list nor a file that can be read ({error.strerror})"
            ) from error
    try:
        read = json.loads(text) if text else []
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(read, list):
        raise ValueError("it is not a JSON list of encoders")  # noqa: TRY004
    return tuple(read)


def _must_differ(value: tuple[EncoderSpec, ...]) -> tuple[EncoderSpec, ...]:
    counts = Counter(encoder.name for encoder in value)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise ValueError(f"{', '.join(twice)} is declared twice; names must differ")
    return value


def _must_be_addresses(value: tuple[str, ...]) -> tuple[str, ...]:
    for proxy in value:
        try:
            ip_network(proxy)
        except ValueError as error:
            raise ValueError(
                f"{proxy!r} is neither an address nor a network, such as 10.0.3.7 or 10.0.3.0/24"
            ) from error
    return value


def _must_be_hard_to_guess(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < _SHORTEST_KEY:
        raise ValueError(f"it has fewer than {_SHORTEST_KEY} characters; make a random one")
    return value


def _must_be_a_server(value: str) -> str:
    if value and not _SERVER.fullmatch(value):
        raise ValueError(
            f"it is {value!r}; permitted is http:// or https:// with a host and a port"
        )
    return value


def _must_be_a_page(value: str) -> str:
    if value and not _PAGE.fullmatch(value):
        raise ValueError(
            f"it is {value!r}; permitted is http:// or https:// with a host, a port and a path"
        )
    return value.rstrip("/")


def _must_sign(value: SecretStr) -> SecretStr:
    read_signing_key(value.get_secret_value())
    return value


def _must_encrypt(value: SecretStr) -> SecretStr:
    read_encryption_keys(value.get_secret_value())
    return value


def read_signing_key(pem: str) -> "Ed25519PrivateKey":
    """The private key. Raises ValueError without quoting it."""
    # Slow to import, and most installations have no such key.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode(), password=None)
    # TypeError: it is encrypted. The library's own message may quote the key.
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(  # noqa: TRY004
            "it is not an Ed25519 private key in PEM without a password; "
            "create one with `python -m service keys signing-key`"
        )
    return key


def read_encryption_keys(text: str) -> list[bytes]:
    """Keys in base64, separated by commas. Raises ValueError without quoting them."""
    try:
        keys = [base64.b64decode(part.strip(), validate=True) for part in text.split(",")]
    except binascii.Error:
        keys = []
    if not keys or any(len(key) != ENCRYPTION_KEY_BYTES for key in keys):
        raise ValueError(
            f"it must be base64 of {ENCRYPTION_KEY_BYTES} random bytes, or several of these separated by commas; "
            "create one with `python -m service keys encryption-key`"
        )
    return keys


# --- Of clusters

# The permitted fields. Ray's others are for a single process or for debugging.
RUNTIME_ENV_FIELDS = (
    "working_dir",
    "py_modules",
    "excludes",
    "pip",
    "uv",
    "conda",
    "env_vars",
    "worker_process_setup_hook",
    "py_executable",
    "image_uri",
    "config",
)

_CODE = ("working_dir", "py_modules")


def _must_be_a_runtime_env(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name not in RUNTIME_ENV_FIELDS:
            raise ValueError(
                f"it has the field {name!r}; permitted are {', '.join(RUNTIME_ENV_FIELDS)}"
            )
    _check_variables(value.get("env_vars", {}))
    for name in _CODE:
        for address in _addresses(name, value.get(name, [])):
            # A folder would be one of the service's image, and be packed again for each attempt.
            if "://" not in address:
                raise ValueError(
                    f"{name} has {address!r}; it must be an address that all nodes can read, such as "
                    "s3://bucket/code.zip"
                )
    return value


def _check_variables(value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"env_vars is {value!r}; it must be an object of strings")  # noqa: TRY004
    for name, text in value.items():
        if not isinstance(text, str):
            raise ValueError(f"env_vars.{name} is {text!r}; it must be a string, in quotes")  # noqa: TRY004


def _addresses(name: str, value: Any) -> Iterator[str]:
    for address in value if isinstance(value, list) else [value]:
        if not isinstance(address, str):
            raise ValueError(f"{name} has {address!r}; it must be an address")  # noqa: TRY004
        yield address


def must_be_a_queue(name: str) -> str:
    """Raises ValueError unless Kubernetes permits a LocalQueue of that name."""
    if not _QUEUE.fullmatch(name):
        raise ValueError(
            f"{name!r} is not the name of a LocalQueue; permitted are up to 63 lower-case letters, digits and '-', the "
            "first and the last no '-'"
        )
    return name


@dataclass(frozen=True)
class PodTemplates:
    """Pod templates merged over those of head and workers, and the submitter's."""

    head: Mapping[str, Any] = field(default_factory=dict)
    workers: Mapping[str, Any] = field(default_factory=dict)
    submitter: Mapping[str, Any] = field(default_factory=dict)


def read_pod_templates(path: Path | None) -> PodTemplates:
    """Read the template file; empty without one. Raises ValueError."""
    if path is None:
        return PodTemplates()
    # Only needed with such a file.
    import yaml

    try:
        read = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    return PodTemplates(**_checked(path, {} if read is None else read))


def _checked(path: Path, read: Any) -> dict[str, Any]:
    if not isinstance(read, dict):
        raise ValueError(f"{path} must be a map with head, workers and submitter")  # noqa: TRY004
    for name, template in read.items():
        if name not in _POD_TEMPLATES:
            raise ValueError(f"{path} has {name!r}; permitted are head, workers and submitter")
        if not isinstance(template, dict) or not set(template) <= {"metadata", "spec"}:
            raise ValueError(
                f"{path}: {name} is not a pod template: it must be a map of metadata and spec"
            )
    return read


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_at_commas)]
JsonObject = Annotated[dict[Name, Value], NoDecode, BeforeValidator(_read_json)]
Encoders = Annotated[
    tuple[EncoderSpec, ...], NoDecode, BeforeValidator(_read_encoders), AfterValidator(_must_differ)
]
Proxies = Annotated[CommaSeparated, AfterValidator(_must_be_addresses)]
OperatorsKey = Annotated[SecretStr, AfterValidator(_must_be_hard_to_guess)]
SigningKey = Annotated[SecretStr, AfterValidator(_must_sign)]
EncryptionKeys = Annotated[SecretStr, AfterValidator(_must_encrypt)]
# Empty for none.
ServerAddress = Annotated[str, AfterValidator(_must_be_a_server)]
PageAddress = Annotated[str, AfterValidator(_must_be_a_page)]
RuntimeEnv = Annotated[JsonObject[str, Any], AfterValidator(_must_be_a_runtime_env)]
QueueName = Annotated[str, AfterValidator(must_be_a_queue)]
