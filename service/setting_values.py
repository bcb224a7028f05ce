"""Types of settings with their own parsing and validation."""

import json
import re
from collections import Counter
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from cmcl.contract.encoder import EncoderSpec

Name = TypeVar("Name")
Value = TypeVar("Value")

_SHORTEST_KEY = 32
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
    # Slow to import, and most installations have no such key.
    from service.auth.key_snapshot import read_signing_key

    read_signing_key(value.get_secret_value())
    return value


def _must_encrypt(value: SecretStr) -> SecretStr:
    from service.events.webhook_secrets import read_keys

    read_keys(value.get_secret_value())
    return value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_at_commas)]
JsonObject = Annotated[dict[Name, Value], NoDecode, BeforeValidator(_read_json)]
Encoders = Annotated[
    tuple[EncoderSpec, ...],
    NoDecode,
    BeforeValidator(_read_encoders),
    AfterValidator(_must_differ),
]
Proxies = Annotated[CommaSeparated, AfterValidator(_must_be_addresses)]
OperatorsKey = Annotated[SecretStr, AfterValidator(_must_be_hard_to_guess)]
SigningKey = Annotated[SecretStr, AfterValidator(_must_sign)]
EncryptionKeys = Annotated[SecretStr, AfterValidator(_must_encrypt)]
# Empty for none.
ServerAddress = Annotated[str, AfterValidator(_must_be_a_server)]
PageAddress = Annotated[str, AfterValidator(_must_be_a_page)]
