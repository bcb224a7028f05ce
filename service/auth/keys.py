"""API keys: created, shown once, revoked.

A key is `cmcl_<12 hexadecimal digits>_<43 characters>`. The digits find its row; the characters are
32 random bytes in url-safe base64, and only their SHA-256 is stored. Slow hashes protect secrets
that people choose. 256 random bits cannot be guessed, and a slow hash for every request would only
make denial of service easier.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints, field_validator
from sqlalchemy import Connection

from cmcl.contract.api.access import KEY_PATTERN, Scope, key_id
from cmcl.contract.modality import NAME_PATTERN, Frozen
from service.auth.ownership import check_keys
from service.core.errors import FieldProblem, Forbidden, NotFound
from service.core.principal import EVERY_SCOPE, LOCAL, RECONCILER, Principal
from service.database.queries import keys
from service.database.queries.keys import KeyRow

# The holder of CMCL_ADMIN_KEY, or of a shell where the service runs.
OPERATOR = Principal("operator", None, EVERY_SCOPE)

_TEXT = re.compile(KEY_PATTERN)
_SECRET_BYTES = 32
# Reserved actor names.
_TAKEN = frozenset({OPERATOR.name, LOCAL.name, RECONCILER.name})

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


@dataclass(frozen=True)
class KeyText:
    """A key as its holder sends it. Its secret is never printed."""

    id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        return f"cmcl_{self.id.removeprefix('key-')}_{self.secret}"

    @property
    def digest(self) -> str:
        return sha256(self.secret)


def _must_be_known(scope: object) -> object:
    if isinstance(scope, str) and scope not in set(Scope):
        raise ValueError(f"scope {scope!r} is unknown; permitted: {', '.join(Scope)}")
    return scope


def _must_have_one(scopes: object) -> object:
    if isinstance(scopes, list | tuple) and not scopes:
        raise ValueError(f"a key needs a scope; permitted: {', '.join(Scope)}")
    return scopes


KnownScope = Annotated[Scope, BeforeValidator(_must_be_known)]


class NewKey(Frozen):
    """A request to create a key."""

    name: Name = Field(
        description="recorded as the actor of what the key does", examples=["training-pipeline"]
    )
    scopes: Annotated[tuple[KnownScope, ...], BeforeValidator(_must_have_one)] = Field(
        max_length=20,
        json_schema_extra={"minItems": 1},
        description="permissions; only those that the requesting key has",
    )
    owner: Name | None = Field(
        default=None,
        description="owner whose things it can see and create; default: the owner of the requesting key, "
        "and `default` for the operator. Only the operator may name another owner",
    )
    expires_in_days: int | None = Field(
        default=None, ge=1, le=3650, description="null: valid until it is revoked"
    )

    @field_validator("name")
    @classmethod
    def _must_not_mislead(cls, value: str) -> str:
        if value in _TAKEN:
            raise ValueError(f"{value!r} is a reserved actor name; choose another name")
        return value


def mint() -> KeyText:
    return KeyText(key_id(secrets.token_hex(6)), secrets.token_urlsafe(_SECRET_BYTES))


def parse(text: str) -> KeyText | None:
    """Parse a sent key; None if it does not have the form of one."""
    found = _TEXT.fullmatch(text)
    return KeyText(key_id(found[1]), found[2]) if found else None


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create_key(
    connection: Connection, new: NewKey, minted: KeyText, principal: Principal, now: datetime
) -> KeyRow:
    """Store a key.

    Raises Forbidden for scopes that the principal lacks, and for other owners; Conflict if the owner has as many keys
    as permitted.
    """
    _check_scopes(new, principal)
    owner, days = _owner(new, principal), new.expires_in_days
    check_keys(connection, owner, principal, now)
    key = KeyRow(
        id=minted.id,
        owner=owner,
        name=new.name,
        scopes=frozenset(new.scopes),
        secret_sha256=minted.digest,
        created_at=now,
        created_by=principal.name,
        expires_at=now + timedelta(days=days) if days is not None else None,
    )
    keys.create(connection, key)
    return key


def get_key(connection: Connection, key: str, principal: Principal) -> KeyRow:
    """The key of that id. Raises NotFound."""
    found = keys.find(connection, key)
    if found is None or not principal.sees(found.owner):
        raise NotFound(f"there is no key {key!r}")
    return found


def revoke_key(connection: Connection, key: str, principal: Principal, now: datetime) -> None:
    """Revoke a key; idempotent. Raises NotFound."""
    get_key(connection, key, principal)
    keys.set_revoked(connection, key, now)


def _check_scopes(new: NewKey, principal: Principal) -> None:
    has = ", ".join(sorted(principal.scopes))
    problems = [
        FieldProblem(f"scopes[{index}]", f"your key does not have it; it has: {has}", scope)
        for index, scope in enumerate(new.scopes)
        if scope not in principal.scopes
    ]
    if problems:
        raise Forbidden("a key cannot grant scopes that it does not have", *problems)


def _owner(new: NewKey, principal: Principal) -> str:
    if new.owner is None or principal.sees(new.owner):
        return new.owner or principal.owns_as
    message = (
        f"your key belongs to owner {principal.owner!r} and can only create keys of that owner"
    )
    raise Forbidden(message, FieldProblem("owner", message, new.owner))
