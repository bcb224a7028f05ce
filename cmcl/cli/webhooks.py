"""`cmcl webhook`: delivery of events to your addresses."""

from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Columns, fields, show, show_all
from cmcl.cli.options import DEFAULT_URL, AsJson, Url, WebhookId
from cmcl.client import Client, CreatedWebhook, Webhook

app = typer.Typer(no_args_is_help=True, help="Webhooks: addresses that receive events.")

_COLUMNS: Columns[Webhook] = {
    "webhook": lambda webhook: webhook.id,
    "url": lambda webhook: webhook.url,
    "kinds": lambda webhook: ", ".join(webhook.kinds or ()) or "all",
    "of": lambda webhook: "every owner" if webhook.every_owner else webhook.model,
    "created": lambda webhook: webhook.created_at,
    "failing since": lambda webhook: webhook.failing_since,
    "disabled": lambda webhook: webhook.disabled_reason,
}


@app.command("add")
def add_webhook(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="https://...")],
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="kind of event, e.g. job.failed; repeatable; default: events that need action"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="only events of this model")] = None,
    every_owner: Annotated[
        bool,
        typer.Option(
            "--every-owner", help="events of the whole deployment; needs the operator's key"
        ),
    ] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Send events to an address. The signing secret is shown once."""
    with Client(url) as client:
        show(
            client.create_webhook(address, kind or (), model, every_owner=every_owner),
            as_json,
            _view,
        )


@app.command("list")
def list_webhooks(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List webhooks."""
    with Client(url) as client:
        hint = "no webhooks yet; add one: cmcl webhook add https://..."
        show_all(client.webhooks(), as_json, _COLUMNS, hint)


@app.command("delete")
def delete_webhook(webhook: WebhookId, url: Url = DEFAULT_URL) -> None:
    """Delete a webhook."""
    with Client(url) as client:
        client.delete_webhook(webhook)


def _view(webhook: CreatedWebhook) -> RenderableType:
    secret = webhook.secret.get_secret_value() if webhook.secret else None
    text = fields({"webhook": webhook.id, "url": webhook.url, "secret": secret})
    return Group(text, Text("store the secret, it is not shown again", style="bold"))
