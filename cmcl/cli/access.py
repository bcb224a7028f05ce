"""`cmcl key`, `cmcl whoami` and `cmcl webhook`: API keys with their scopes, and addresses that receive events."""

from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Columns, fields, show, show_all, stdout
from cmcl.cli.options import DEFAULT_URL, AsJson, KeyId, Url, WebhookId
from cmcl.client import (
    ApiKey,
    Client,
    CreatedKey,
    CreatedWebhook,
    Quotas,
    Webhook,
    Whoami,
)

key_app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")

_KEY_COLUMNS: Columns[ApiKey] = {
    "key": lambda key: key.id,
    "name": lambda key: key.name,
    "owner": lambda key: key.owner,
    "scopes": lambda key: ", ".join(key.scopes),
    "created": lambda key: key.created_at,
    "last used": lambda key: key.last_used_at,
    "expires": lambda key: key.expires_at,
    "revoked": lambda key: key.revoked_at,
}


@key_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the key")],
    scope: Annotated[list[str], typer.Option(help="read, write, train, admin, embed; repeatable")],
    owner: Annotated[
        str | None, typer.Option(help="owner of the key; needs the operator's key")
    ] = None,
    expires_in_days: Annotated[
        int | None, typer.Option(min=1, help="days until it expires; default never")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Create a key. Its secret is shown once."""
    scopes = [each.strip() for text in scope for each in text.split(",")]
    with Client(url) as client:
        show(client.create_key(name, scopes, owner, expires_in_days), as_json, _created_key)


@key_app.command("list")
def list_keys(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List keys, without their secrets."""
    with Client(url) as client:
        hint = "no keys yet; create one: cmcl key create NAME --scope read"
        show_all(client.keys(), as_json, _KEY_COLUMNS, hint)


@key_app.command("revoke")
def revoke_key(key: KeyId, url: Url = DEFAULT_URL) -> None:
    """Revoke a key by its id."""
    with Client(url) as client:
        client.revoke_key(key)
    stdout().print(f"key {key} is revoked", highlight=False)


class _Identity(Whoami):
    """The identity of a key, and the quotas of its owner if the key may read them."""

    quotas: Quotas | None = None


def whoami(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the identity and scopes of your key, and what its owner uses of its quotas."""
    with Client(url) as client:
        who = client.whoami()
        quotas = client.quotas() if "read" in who.scopes else None
    show(_Identity(**who.model_dump(), quotas=quotas), as_json, _identity)


def _created_key(key: CreatedKey) -> RenderableType:
    secret = key.key.get_secret_value() if key.key else None
    text = fields(
        {
            "id": key.id,
            "name": key.name,
            "owner": key.owner,
            "scopes": ", ".join(key.scopes),
            "key": secret,
        }
    )
    return Group(
        text, Text("store the key, it is not shown again (export CMCL_KEY=...)", style="bold")
    )


def _identity(who: _Identity) -> RenderableType:
    scopes = ", ".join(who.scopes)
    identity = fields({"name": who.name, "owner": who.owner or "all", "scopes": scopes})
    if who.quotas is None:
        return identity
    used = {
        name.replace(
            "_", " "
        ): f"{quota.used} of {'any number' if quota.limit is None else quota.limit}"
        for name, quota in who.quotas.quotas.items()
    }
    return Group(identity, fields(used, f"quotas of {who.quotas.owner}"))


webhook_app = typer.Typer(no_args_is_help=True, help="Webhooks: addresses that receive events.")

_WEBHOOK_COLUMNS: Columns[Webhook] = {
    "webhook": lambda webhook: webhook.id,
    "url": lambda webhook: webhook.url,
    "kinds": lambda webhook: ", ".join(webhook.kinds or ()) or "all",
    "of": lambda webhook: "every owner" if webhook.every_owner else webhook.model,
    "created": lambda webhook: webhook.created_at,
    "failing since": lambda webhook: webhook.failing_since,
    "disabled": lambda webhook: webhook.disabled_reason,
}


@webhook_app.command("add")
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
            _created_webhook,
        )


@webhook_app.command("list")
def list_webhooks(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List webhooks."""
    with Client(url) as client:
        hint = "no webhooks yet; add one: cmcl webhook add https://..."
        show_all(client.webhooks(), as_json, _WEBHOOK_COLUMNS, hint)


@webhook_app.command("delete")
def delete_webhook(webhook: WebhookId, url: Url = DEFAULT_URL) -> None:
    """Delete a webhook."""
    with Client(url) as client:
        client.delete_webhook(webhook)


def _created_webhook(webhook: CreatedWebhook) -> RenderableType:
    secret = webhook.secret.get_secret_value() if webhook.secret else None
    text = fields({"webhook": webhook.id, "url": webhook.url, "secret": secret})
    return Group(text, Text("store the secret, it is not shown again", style="bold"))
