"""Webhooks: create, list, test, delete; and their deliveries."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from cmcl.contract.api.events import CreatedWebhook, Delivery, Webhook
from service.api.dependencies import Admin, ContextDep, IdempotencyKeyDep
from service.api.idempotency import respond, response_row
from service.api.pagination import NewestSeek, Page, TextSeek, page
from service.context import Context
from service.core.principal import Principal
from service.database.queries import deliveries, webhooks
from service.database.queries.deliveries import DeliveryRow
from service.database.queries.webhooks import WebhookRow
from service.database.rows import ResponseRow
from service.events.webhook_secrets import SecretCipher
from service.events.webhooks import (
    NewWebhook,
    Registrar,
    create_webhook,
    delete_webhook,
    get_webhook,
    new_secret,
    try_webhook,
)

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

WebhookPath = Annotated[str, Path(alias="webhook", pattern=r"^wh-[0-9a-f]{12}$")]


def to_webhook(webhook: WebhookRow) -> Webhook:
    return Webhook.model_validate(webhook, from_attributes=True)


def to_delivery(delivery: DeliveryRow) -> Delivery:
    is_over = delivery.delivered_at is not None or delivery.failed_at is not None
    return Delivery.model_validate(
        vars(delivery) | {"next_at": None if is_over else delivery.next_at}
    )


@router.post("", status_code=201, response_model=CreatedWebhook)
def post_webhook(
    body: NewWebhook, principal: Admin, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Create a webhook. The response has the secret that signs its messages; store it.

    It is returned once: the same Idempotency-Key returns the same webhook without the secret.
    """
    registrar = _registrar(context, principal)
    secret = new_secret()

    def effect(connection: Connection) -> ResponseRow:
        webhook = create_webhook(connection, body, secret, registrar)
        shown = CreatedWebhook(**vars(to_webhook(webhook)), secret=None)
        return response_row(key, 201, shown, f"/v1/webhooks/{webhook.id}")

    return respond(context, key, effect, {"secret": secret})


@router.get("")
def list_webhooks(principal: Admin, context: ContextDep, seek: TextSeek) -> Page[Webhook]:
    """List webhooks by id."""
    with context.database.read() as connection:
        found = webhooks.page(connection, principal.owner, seek.peek())
    return page(found, seek, to_webhook, lambda webhook: webhook.id)


@router.get("/{webhook}")
def read_webhook(webhook: WebhookPath, principal: Admin, context: ContextDep) -> Webhook:
    """Read a webhook."""
    with context.database.read() as connection:
        return to_webhook(get_webhook(connection, webhook, principal))


@router.delete("/{webhook}", status_code=204)
def remove_webhook(webhook: WebhookPath, principal: Admin, context: ContextDep) -> None:
    """Delete a webhook and drop its pending deliveries."""
    with context.database.write() as connection:
        delete_webhook(connection, webhook, principal)


@router.get("/{webhook}/deliveries")
def list_deliveries(
    webhook: WebhookPath, principal: Admin, context: ContextDep, seek: NewestSeek
) -> Page[Delivery]:
    """List deliveries of a webhook, newest first; with `order=asc`, the oldest first."""
    with context.database.read() as connection:
        get_webhook(connection, webhook, principal)
        found = deliveries.page(connection, webhook, seek.peek())
    return page(found, seek, to_delivery, lambda delivery: delivery.sequence)


@router.post("/{webhook}/test", status_code=202, response_model=Delivery)
def send_test_message(
    webhook: WebhookPath, principal: Admin, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Send a message of kind `webhook.test`. 409 if the webhook is disabled or too many messages wait."""

    def effect(connection: Connection) -> ResponseRow:
        delivery = try_webhook(connection, webhook, _registrar(context, principal))
        location = f"/v1/webhooks/{webhook}/deliveries"
        return response_row(key, 202, to_delivery(delivery), location)

    return respond(context, key, effect)


def _registrar(context: Context, principal: Principal) -> Registrar:
    settings = context.settings
    return Registrar(
        principal, settings.webhook_prefixes, SecretCipher(settings.encryption_key), context.clock()
    )
