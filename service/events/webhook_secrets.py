"""Encrypts webhook secrets at rest: AES-256-GCM with the keys of CMCL_ENCRYPTION_KEY.

Every message is signed with its webhook's secret, so storing a digest, as for API keys, is not
enough. Each secret is bound to its webhook's id, so it cannot be moved to another row. The stored form
is `aesgcm:` followed by base64 of the key id, the nonce, and the secret with its tag.
"""

import base64
import hashlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import SecretStr

from service.core.setting_values import ENCRYPTION_KEY_BYTES, read_encryption_keys
from service.database.engine import Database, Seek
from service.database.queries import webhooks
from service.database.queries.webhooks import WebhookRow

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

logger = logging.getLogger(__name__)

_PREFIX = "aesgcm:"
_ID_BYTES = 4
_NONCE_BYTES = 12
_PAGE = 200


class SecretUnreadable(Exception):
    """A secret's key is missing, or the stored value was changed."""


class SecretCipher:
    """Encrypts with the first key and decrypts with all; without keys, secrets stay unencrypted."""

    def __init__(self, keys: SecretStr | None = None) -> None:
        self._keys = [] if keys is None else read_encryption_keys(keys.get_secret_value())

    @property
    def has_keys(self) -> bool:
        return bool(self._keys)

    def encrypt(self, secret: str, webhook: str) -> str:
        """The value to store for a webhook's secret."""
        if not self._keys:
            return secret
        key, nonce = self._keys[0], os.urandom(_NONCE_BYTES)
        sealed = _aes(key).encrypt(nonce, secret.encode(), webhook.encode())
        return _PREFIX + base64.b64encode(_id(key) + nonce + sealed).decode()

    def decrypt(self, stored: str, webhook: str) -> str:
        """The secret; an unencrypted one is returned unchanged. Raises SecretUnreadable."""
        if not is_encrypted(stored):
            return stored
        # Slow to import, and only needed with a key.
        from cryptography.exceptions import InvalidTag

        data = _sealed(stored)
        nonce, sealed = data[_ID_BYTES:][:_NONCE_BYTES], data[_ID_BYTES + _NONCE_BYTES :]
        for key in self._keys:
            if data.startswith(_id(key)):
                try:
                    return _aes(key).decrypt(nonce, sealed, webhook.encode()).decode()
                except InvalidTag as error:
                    raise SecretUnreadable("the stored secret was changed") from error
        raise SecretUnreadable(
            "it was encrypted with a key that CMCL_ENCRYPTION_KEY does not contain"
        )

    def is_current(self, stored: str) -> bool:
        """Whether it is stored as `encrypt` would store it now. Raises SecretUnreadable."""
        if not is_encrypted(stored):
            return not self._keys
        return self.has_keys and _sealed(stored).startswith(_id(self._keys[0]))


def is_encrypted(stored: str) -> bool:
    return stored.startswith(_PREFIX)


def new_key() -> str:
    return base64.b64encode(os.urandom(ENCRYPTION_KEY_BYTES)).decode()


def encrypt_stored(database: Database, cipher: SecretCipher) -> None:
    """Encrypt every secret with the first key, at startup, after keys were set or changed.

    Without keys, warn once that secrets are stored unencrypted.
    """
    stored = list(_all_webhooks(database))
    if any(not is_encrypted(webhook.secret) for webhook in stored) and not cipher.has_keys:
        logger.warning(
            "webhook secrets are stored unencrypted; set CMCL_ENCRYPTION_KEY to the output of "
            "`python -m service keys encryption-key`, and the next start encrypts them"
        )
    for webhook in stored:
        try:
            if cipher.is_current(webhook.secret):
                continue
            secret = cipher.decrypt(webhook.secret, webhook.id)
        except SecretUnreadable as error:
            # Its deliveries fail with the same message; other webhooks are not affected.
            logger.warning("the secret of %s cannot be decrypted: %s", webhook.id, error)
            continue
        new = cipher.encrypt(secret, webhook.id)
        with database.write() as connection:
            webhooks.set_secret(connection, webhook.id, webhook.secret, new)


def _all_webhooks(database: Database) -> Iterator[WebhookRow]:
    after: str | None = None
    while True:
        with database.read() as connection:
            found = webhooks.page(connection, None, Seek(after, limit=_PAGE))
        yield from found
        if len(found) < _PAGE:
            return
        after = found[-1].id


def _sealed(stored: str) -> bytes:
    """The id of the key, the nonce, and the secret with its tag. Raises SecretUnreadable."""
    try:
        data = base64.b64decode(stored.removeprefix(_PREFIX), validate=True)
    except ValueError as error:
        raise SecretUnreadable("the stored value is not base64") from error
    if len(data) <= _ID_BYTES + _NONCE_BYTES:
        raise SecretUnreadable("the stored value is too short")
    return data


def _aes(key: bytes) -> "AESGCM":
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _id(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_ID_BYTES]
