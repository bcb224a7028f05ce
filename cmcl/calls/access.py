"""Keys, and who one is."""

from collections.abc import Sequence

from cmcl.errors import secret_lost
from cmcl.flow.api import Api, segment
from cmcl.flow.effects import Flow, Items
from cmcl.types import ApiKey, NewApiKey, Whoami


def create_key(
    api: Api,
    name: str,
    scopes: Sequence[str],
    owner: str | None = None,
    expires_in_days: int | None = None,
) -> Flow[NewApiKey]:
    """Make a key; its secret is told once, in `key`. `owner`: for the operator alone."""
    body = {
        "name": name,
        "scopes": list(scopes),
        "owner": owner,
        "expires_in_days": expires_in_days,
    }
    given = {field: value for field, value in body.items() if value is not None}
    made = yield from api.post(NewApiKey, "/v1/keys", given)
    if made.key is None:
        raise secret_lost("key", made.id)
    return made


def keys(api: Api) -> Items[ApiKey]:
    """All keys that one may see, without their secrets."""
    return api.pages(ApiKey, "/v1/keys")


def key(api: Api, key: str) -> Flow[ApiKey]:
    """One key, by its id."""
    return api.get(ApiKey, f"/v1/keys/{segment(key)}")


def revoke_key(api: Api, key: str) -> Flow[None]:
    """Let a key open nothing any more. `key` is its id, never its secret."""
    return api.delete(f"/v1/keys/{segment(key)}")


def whoami(api: Api) -> Flow[Whoami]:
    """For whom the service takes this client."""
    return api.get(Whoami, "/v1/whoami")
