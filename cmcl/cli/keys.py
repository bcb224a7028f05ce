"""`cmcl key` and `cmcl whoami`: API keys and their scopes."""

from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Columns, fields, show, show_all, stdout
from cmcl.cli.options import DEFAULT_URL, AsJson, KeyId, Url
from cmcl.client import ApiKey, Client, CreatedKey, Quotas, Whoami

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")

_COLUMNS: Columns[ApiKey] = {
    "key": lambda key: key.id,
    "name": lambda key: key.name,
    "owner": lambda key: key.owner,
    "scopes": lambda key: ", ".join(key.scopes),
    "created": lambda key: key.created_at,
    "last used": lambda key: key.last_used_at,
    "expires": lambda key: key.expires_at,
    "revoked": lambda key: key.revoked_at,
}


@app.command("create")
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
        show(client.create_key(name, scopes, owner, expires_in_days), as_json, _view)


@app.command("list")
def list_keys(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List keys, without their secrets."""
    with Client(url) as client:
        hint = "no keys yet; create one: cmcl key create NAME --scope read"
        show_all(client.keys(), as_json, _COLUMNS, hint)


@app.command("revoke")
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


def _view(key: CreatedKey) -> RenderableType:
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
