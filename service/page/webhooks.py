"""Webhooks: where events are sent, what came of it, and test messages. A secret is shown once."""

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from cmcl.contract.api.events import CreatedWebhook, EventKind
from cmcl.contract.modality import Frozen
from service.api.dependencies import Admin, ContextDep
from service.api.pagination import CursorQuery, get_newest_seek, get_text_seek
from service.api.webhooks import (
    WebhookPath,
    list_deliveries,
    list_webhooks,
    post_webhook,
    read_webhook,
    remove_webhook,
    send_test_message,
)
from service.context import Context
from service.core.principal import Principal
from service.events.webhooks import WORTH_A_MESSAGE, NewWebhook
from service.page.forms import Once, new_once, once, posted, see_other, validated
from service.page.rendering import PREFIX, pages_of

router = APIRouter(prefix=PREFIX)

_LISTED = 50


class WebhookForm(Frozen):
    """A webhook as the form describes it. `once`: of a page, so that a form that is sent again creates nothing."""

    once: Once
    url: str = ""
    kinds: tuple[str, ...] = Field(default=(), max_length=len(EventKind))
    model: str | None = None
    every_owner: bool = False


@router.get("/webhooks")
def webhooks_page(
    request: Request, principal: Admin, context: ContextDep, cursor: CursorQuery = None
) -> Response:
    """Webhooks of the owner, and the form for another one."""
    return _page(request, principal, context, cursor)


@router.post("/webhooks")
def create_webhook(
    request: Request,
    form: Annotated[WebhookForm, posted(WebhookForm)],
    principal: Admin,
    context: ContextDep,
) -> Response:
    """Create a webhook, and show its secret."""
    new = validated(NewWebhook, form.model_dump(exclude={"once"}))
    answer = post_webhook(new, principal, context, once(request, principal, form.once, form))
    created = CreatedWebhook.model_validate_json(bytes(answer.body))
    return _page(request, principal, context, None, created)


@router.get("/webhooks/{webhook}")
def webhook_page(
    request: Request,
    webhook: WebhookPath,
    principal: Admin,
    context: ContextDep,
    cursor: CursorQuery = None,
) -> Response:
    """One webhook and its deliveries, the newest first."""
    seek = get_newest_seek(cursor, "desc", _LISTED)
    found = list_deliveries(webhook, principal, context, seek)
    return pages_of(request).render(
        request,
        "webhook.html",
        webhook=read_webhook(webhook, principal, context),
        deliveries=found.items,
        next_cursor=found.next_cursor,
    )


@router.post("/webhooks/{webhook}/test")
def send_test(
    request: Request, webhook: WebhookPath, principal: Admin, context: ContextDep
) -> Response:
    """Send a test message; its delivery is in the list of the next page."""
    send_test_message(webhook, principal, context, None)
    return see_other(request, f"webhooks/{webhook}", "webhook-tested")


@router.get("/webhooks/{webhook}/delete")
def confirm_deletion(
    request: Request, webhook: WebhookPath, principal: Admin, context: ContextDep
) -> Response:
    """Say what deleting the webhook means."""
    newest = list_deliveries(webhook, principal, context, get_newest_seek(None, "desc", _LISTED))
    return pages_of(request).render(
        request,
        "confirm_webhook.html",
        webhook=read_webhook(webhook, principal, context),
        waiting=sum(each.next_at is not None for each in newest.items),
        has_more=newest.next_cursor is not None,
        is_possible=True,
        changed=None,
    )


@router.post("/webhooks/{webhook}/delete")
def delete_webhook(
    request: Request, webhook: WebhookPath, principal: Admin, context: ContextDep
) -> Response:
    """Delete the webhook with its pending deliveries."""
    remove_webhook(webhook, principal, context)
    return see_other(request, "webhooks", "webhook-deleted")


def _page(
    request: Request,
    principal: Principal,
    context: Context,
    cursor: str | None,
    created: CreatedWebhook | None = None,
) -> Response:
    found = list_webhooks(principal, context, get_text_seek(cursor, "asc", _LISTED))
    return pages_of(request).render(
        request,
        "webhooks.html",
        webhooks=found.items,
        next_cursor=found.next_cursor,
        created=created,
        once=new_once(),
        kinds=[kind for kind in EventKind if kind != EventKind.WEBHOOK_TEST],
        chosen=WORTH_A_MESSAGE,
        prefixes=context.settings.webhook_prefixes,
        is_encrypted=context.settings.encryption_key is not None,
    )
