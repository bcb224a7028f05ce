"""Webhooks: who is told of events."""

from collections.abc import Sequence

from cmcl.errors import secret_lost
from cmcl.flow.api import Api, segment
from cmcl.flow.effects import Flow, Items
from cmcl.types import Delivery, NewWebhook, Webhook


def create_webhook(
    api: Api,
    url: str,
    kinds: Sequence[str] = (),
    model: str | None = None,
    *,
    every_owner: bool = False,
) -> Flow[NewWebhook]:
    """Have events sent to `url`; the secret of the signatures is told once, in `secret`.

    Without `kinds`, of what somebody would act upon; without `model`, of every model of the
    key's owner. `every_owner`: of the whole deployment, for the operator alone.
    """
    asked = True if every_owner else None
    body = {"url": url, "kinds": list(kinds) or None, "model": model, "every_owner": asked}
    given = {field: value for field, value in body.items() if value is not None}
    made = yield from api.post(NewWebhook, "/v1/webhooks", given)
    if made.secret is None:
        raise secret_lost("webhook", made.id)
    return made


def webhooks(api: Api) -> Items[Webhook]:
    """All webhooks."""
    return api.pages(Webhook, "/v1/webhooks")


def webhook(api: Api, webhook: str) -> Flow[Webhook]:
    """One webhook."""
    return api.get(Webhook, _path(webhook))


def delete_webhook(api: Api, webhook: str) -> Flow[None]:
    """Send no more to it."""
    return api.delete(_path(webhook))


def test_webhook(api: Api, webhook: str) -> Flow[Delivery]:
    """Send it a message, to see whether it arrives."""
    return api.post(Delivery, f"{_path(webhook)}/test")


def deliveries(api: Api, webhook: str) -> Items[Delivery]:
    """What was sent to it, and what became of each message."""
    return api.pages(Delivery, f"{_path(webhook)}/deliveries")


def _path(webhook: str) -> str:
    return f"/v1/webhooks/{segment(webhook)}"
