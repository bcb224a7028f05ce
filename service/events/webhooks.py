"""Webhooks: created, read, tested and deleted by users."""

import base64
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import Field
from sqlalchemy import Connection

from cmcl.contract.api.events import EventKind
from cmcl.contract.modality import Frozen, ModelName
from service.auth.ownership import check_webhooks, get_model
from service.core.errors import Conflict, FieldProblem, Forbidden, NotFound, Unprocessable
from service.core.principal import EVERY_OWNER, Principal
from service.database.queries import deliveries, webhooks
from service.database.queries.deliveries import DeliveryRow
from service.database.queries.webhooks import WebhookRow
from service.database.rows import Event, random_id
from service.events.webhook_delivery import LONGEST_URL, AddressRejected, check_url
from service.events.webhook_secrets import SecretCipher

_SECRET_BYTES = 32

# The default for webhooks: events that call for an action.
WORTH_A_MESSAGE = (
    EventKind.JOB_HELD,
    EventKind.JOB_REJECTED,
    EventKind.JOB_FAILED,
    EventKind.VERSION_PUBLISHED,
    EventKind.VERSION_PROMOTED,
    EventKind.VERSION_ROLLED_BACK,
    EventKind.MODEL_DRIFTED,
)


class NewWebhook(Frozen):
    """A request to create a webhook."""

    url: Annotated[str, Field(max_length=LONGEST_URL)] = Field(
        description="https URL that messages are posted to",
        examples=["https://example.com/hooks/cmcl"],
    )
    kinds: tuple[EventKind, ...] = Field(
        default=WORTH_A_MESSAGE,
        min_length=1,
        max_length=len(EventKind),
        description="kinds of events to send",
    )
    model: ModelName | None = Field(
        default=None,
        description="only events of this model; default: all models of the key's owner",
    )
    every_owner: bool = Field(
        default=False,
        description="events of all owners in the deployment; only for the operator, and without "
        "`model`",
    )


@dataclass(frozen=True)
class Registrar:
    """The caller, permitted URL prefixes, the cipher and the time."""

    principal: Principal
    prefixes: tuple[str, ...]
    cipher: SecretCipher
    now: datetime


def new_secret() -> str:
    """A secret in the format of Standard Webhooks: 32 random bytes."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode('ascii')}"


def create_webhook(
    connection: Connection, request: NewWebhook, secret: str, registrar: Registrar
) -> WebhookRow:
    """Create a webhook whose messages are signed with the secret.

    Raises Unprocessable for a URL that is not permitted, NotFound for the model, Forbidden if the
    principal may not receive events of all owners, Conflict if the owner has too many.
    """
    owner = _owner(connection, request, registrar.principal)
    check_webhooks(connection, owner)
    name = f"wh-{random_id()}"
    webhook = WebhookRow(
        id=name,
        owner=owner,
        url=_checked(request.url, registrar.prefixes),
        secret=registrar.cipher.encrypt(secret, name),
        kinds=tuple(sorted(set(request.kinds))),
        model=request.model,
        created_at=registrar.now,
    )
    webhooks.create(connection, webhook)
    return webhook


def get_webhook(connection: Connection, webhook: str, principal: Principal) -> WebhookRow:
    """The webhook of that id. Raises NotFound."""
    found = webhooks.find(connection, webhook)
    if found is None or not principal.sees(found.owner):
        raise NotFound(f"there is no webhook {webhook!r}")
    return found


def delete_webhook(connection: Connection, webhook: str, principal: Principal) -> None:
    """Delete a webhook with its pending deliveries. Raises NotFound."""
    get_webhook(connection, webhook, principal)
    webhooks.remove(connection, webhook)


def try_webhook(connection: Connection, webhook: str, registrar: Registrar) -> DeliveryRow:
    """Send it a test message of kind `webhook.test`.

    Raises NotFound, and Conflict if it is disabled or its owner has too many pending messages.
    """
    found = get_webhook(connection, webhook, registrar.principal)
    if found.disabled_at is not None:
        raise Conflict(f"the webhook is disabled: {found.disabled_reason}; create a new one")
    if deliveries.count_room(connection, found.owner) <= 0:
        waiting = (
            f"{deliveries.MOST_WAITING} messages of owner {found.owner!r} wait to be delivered, "
        )
        raise Conflict(f"{waiting}which is the limit; try again when some have been delivered")
    data = {"webhook": found.id, "actor": registrar.principal.name}
    event = Event(
        kind=EventKind.WEBHOOK_TEST, owner=found.owner, model=found.model or "", data=data
    )
    message = webhooks.payload(found, event, registrar.now)
    made = deliveries.add(connection, found.id, message, registrar.now)
    delivery = deliveries.find(connection, made)
    assert delivery is not None, f"delivery {made} was inserted and is not there"
    return delivery


def _owner(connection: Connection, request: NewWebhook, principal: Principal) -> str:
    if request.every_owner:
        _check_every_owner(request, principal)
        return EVERY_OWNER
    if request.model is None:
        return principal.owns_as
    return get_model(connection, request.model, principal).owner


def _check_every_owner(request: NewWebhook, principal: Principal) -> None:
    if principal.owner is not None:
        message = f"your key belongs to owner {principal.owner!r} and may receive only that owner's events"
        raise Forbidden(message, FieldProblem("every_owner", message, value=True))
    if request.model is not None:
        message = (
            "a webhook of one model receives only events of that model's owner; omit one of the two"
        )
        raise Unprocessable(message, FieldProblem("every_owner", message, value=True))


def _checked(url: str, prefixes: tuple[str, ...]) -> str:
    try:
        return str(check_url(url, prefixes))
    except AddressRejected as error:
        raise Unprocessable(str(error), FieldProblem("url", str(error))) from error
