"""Webhooks: create, list, test, delete; and their deliveries."""

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from service.api.dependencies import Admin, ContextDep, IdempotencyKeyDep
from service.api.idempotency import respond, response_row, run_once
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


class WebhookView(BaseModel):
    """A webhook, without its secret."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    owner: str = Field(description="owner whose events it gets; `*` for those of all owners")
    url: str
    kinds: tuple[str, ...]
    model: str | None
    every_owner: bool = Field(description="whether it gets events of all owners")
    created_at: datetime
    failing_since: datetime | None = Field(description="since when no delivery has succeeded")
    disabled_at: datetime | None = Field(description="since when nothing is sent to it")
    disabled_reason: str | None


class CreatedWebhook(WebhookView):
    """A webhook with its secret, which is returned once."""

    secret: str | None = Field(description="verifies signatures; null in a replayed response")


class DeliveryView(BaseModel):
    """A message and the state of its delivery."""

    id: str = Field(description="the message's `webhook-id`, equal for all attempts")
    webhook: str
    payload: dict[str, object]
    attempts: int
    next_at: datetime | None = Field(description="time of the next attempt; null if there is none")
    status: int | None = Field(description="last status of the receiver")
    error: str | None
    created_at: datetime
    delivered_at: datetime | None
    failed_at: datetime | None = Field(description="when it was abandoned")

    @classmethod
    def of(cls, delivery: DeliveryRow) -> Self:
        """Create it from a record."""
        values = {field: getattr(delivery, field) for field in cls.model_fields}
        is_over = delivery.delivered_at is not None or delivery.failed_at is not None
        return cls.model_validate({**values, "next_at": None if is_over else delivery.next_at})


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
        shown = CreatedWebhook.model_validate({**_shown(webhook), "secret": None})
        return response_row(key, 201, shown, f"/v1/webhooks/{webhook.id}")

    given = run_once(context, key, effect)
    if given.is_replay:
        return given.response()
    # The secret is added after the response was stored for the Idempotency-Key.
    response = given.with_more(secret=secret).response()
    response.headers["Cache-Control"] = "no-store"
    return response


@router.get("")
def list_webhooks(principal: Admin, context: ContextDep, seek: TextSeek) -> Page[WebhookView]:
    """List webhooks by id."""
    with context.database.read() as connection:
        found = webhooks.page(connection, principal.owner, seek.peek())
    return page(found, seek, WebhookView.model_validate, lambda webhook: webhook.id)


@router.get("/{webhook}")
def read_webhook(webhook: WebhookPath, principal: Admin, context: ContextDep) -> WebhookView:
    """Read a webhook."""
    with context.database.read() as connection:
        return WebhookView.model_validate(get_webhook(connection, webhook, principal))


@router.delete("/{webhook}", status_code=204)
def remove_webhook(webhook: WebhookPath, principal: Admin, context: ContextDep) -> None:
    """Delete a webhook and drop its pending deliveries."""
    with context.database.write() as connection:
        delete_webhook(connection, webhook, principal)


@router.get("/{webhook}/deliveries")
def list_deliveries(
    webhook: WebhookPath, principal: Admin, context: ContextDep, seek: NewestSeek
) -> Page[DeliveryView]:
    """List deliveries of a webhook, newest first; with `order=asc`, the oldest first."""
    with context.database.read() as connection:
        get_webhook(connection, webhook, principal)
        found = deliveries.page(connection, webhook, seek.peek())
    return page(found, seek, DeliveryView.of, lambda delivery: delivery.sequence)


@router.post("/{webhook}/test", status_code=202, response_model=DeliveryView)
def send_test_message(
    webhook: WebhookPath, principal: Admin, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Send a message of kind `webhook.test`. 409 if the webhook is disabled or too many messages wait."""

    def effect(connection: Connection) -> ResponseRow:
        delivery = try_webhook(connection, webhook, _registrar(context, principal))
        location = f"/v1/webhooks/{webhook}/deliveries"
        return response_row(key, 202, DeliveryView.of(delivery), location)

    return respond(context, key, effect)


def _registrar(context: Context, principal: Principal) -> Registrar:
    settings = context.settings
    return Registrar(
        principal,
        settings.webhook_prefixes,
        SecretCipher(settings.encryption_key),
        context.clock(),
    )


def _shown(webhook: WebhookRow) -> dict[str, object]:
    return WebhookView.model_validate(webhook).model_dump()
