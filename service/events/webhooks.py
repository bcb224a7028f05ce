"""Webhooks as users make, look at, try and remove them."""

import base64
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import Field
from sqlalchemy import Connection

from cmcl.contract.modality import Frozen, ModelName
from service.database.queries import deliveries, webhooks
from service.database.queries.deliveries import DeliveryRecord
from service.database.queries.webhooks import WebhookRecord
from service.database.rows import Event, random_id
from service.errors import Conflict, FieldProblem, Forbidden, NotFound, Unprocessable
from service.events.kinds import WORTH_A_MESSAGE, EventKind
from service.events.webhook_secrets import SecretCipher
from service.events.webhook_sender import LONGEST_URL, AddressRefused, check_url
from service.lookup import get_model
from service.principal import EVERY_OWNER, Principal
from service.quotas import check_webhooks

_SECRET_BYTES = 32


class NewWebhook(Frozen):
    """A webhook as it is posted."""

    url: Annotated[str, Field(max_length=LONGEST_URL)] = Field(
        description="https address that messages are posted to",
        examples=["https://example.com/hooks/cmcl"],
    )
    kinds: tuple[EventKind, ...] = Field(
        default=WORTH_A_MESSAGE,
        min_length=1,
        max_length=len(EventKind),
        description="kinds of events to be told of",
    )
    model: ModelName | None = Field(
        default=None,
        description="of this model alone; without it, of all models of the key's owner",
    )
    every_owner: bool = Field(
        default=False,
        description="of the whole deployment, whoever a model belongs to; for the operator alone, "
        "without `model`",
    )


@dataclass(frozen=True)
class Registrar:
    """Who asks, where webhooks may lie, how many an owner has, what encrypts, and the time."""

    principal: Principal
    prefixes: tuple[str, ...]
    most: int
    cipher: SecretCipher
    now: datetime


def new_secret() -> str:
    """Of Standard Webhooks' form: 32 random bytes."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode('ascii')}"


def create_webhook(
    connection: Connection, request: NewWebhook, secret: str, registrar: Registrar
) -> WebhookRecord:
    """A new webhook, whose messages are signed with the secret.

    Raises Unprocessable for an address that is not permitted, NotFound for the model, Forbidden
    where it is not the principal's to hear of all owners, Conflict where the owner has too many.
    """
    owner = _owner(connection, request, registrar.principal)
    check_webhooks(connection, owner, registrar.most)
    name = f"wh-{random_id()}"
    webhook = WebhookRecord(
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


def get_webhook(connection: Connection, webhook: str, principal: Principal) -> WebhookRecord:
    """The webhook of that id. Raises NotFound."""
    found = webhooks.find(connection, webhook)
    if found is None or not principal.sees(found.owner):
        raise NotFound(f"there is no webhook {webhook!r}")
    return found


def delete_webhook(connection: Connection, webhook: str, principal: Principal) -> None:
    """It is told nothing any more, also not what waits for it. Raises NotFound."""
    get_webhook(connection, webhook, principal)
    webhooks.remove(connection, webhook)


def try_webhook(connection: Connection, webhook: str, registrar: Registrar) -> DeliveryRecord:
    """Send it a message of kind `webhook.test`.

    Raises NotFound, and Conflict if it is disabled or as many messages of its owner wait as may.
    """
    found = get_webhook(connection, webhook, registrar.principal)
    if found.disabled_at is not None:
        raise Conflict(f"the webhook is disabled: {found.disabled_reason}; make a new one")
    if deliveries.count_room(connection, found.owner) <= 0:
        waiting = (
            f"{deliveries.MOST_WAITING} messages of owner {found.owner!r} wait to be delivered, "
        )
        raise Conflict(f"{waiting}which is the limit; try again when some have been delivered")
    told = {"webhook": found.id, "actor": registrar.principal.name}
    event = Event(
        kind=EventKind.WEBHOOK_TEST, owner=found.owner, model=found.model or "", data=told
    )
    message = webhooks.payload(found, event, registrar.now)
    made = deliveries.add(connection, found.id, message, registrar.now)
    delivery = deliveries.find(connection, made)
    if delivery is None:
        raise RuntimeError(f"delivery {made} was inserted and is not there")
    return delivery


def _owner(connection: Connection, request: NewWebhook, principal: Principal) -> str:
    """Whose events it is told of."""
    if request.every_owner:
        _check_hears_all(request, principal)
        return EVERY_OWNER
    if request.model is None:
        return principal.owns_as
    return get_model(connection, request.model, principal).owner


def _check_hears_all(request: NewWebhook, principal: Principal) -> None:
    if principal.owner is not None:
        message = f"your key is of owner {principal.owner!r} and hears of that owner alone"
        raise Forbidden(message, FieldProblem("every_owner", message, value=True))
    if request.model is not None:
        message = "a webhook of one model hears of that model's owner; leave one of the two out"
        raise Unprocessable(message, FieldProblem("every_owner", message, value=True))


def _checked(url: str, prefixes: tuple[str, ...]) -> str:
    try:
        return str(check_url(url, prefixes))
    except AddressRefused as error:
        raise Unprocessable(str(error), FieldProblem("url", str(error))) from error
