# Generated from cmcl/client/_async/access.py by `make docs`; edit that file.
"""API keys, the identity of the caller, and webhooks."""

from collections.abc import Iterator, Sequence

from cmcl.client._sync.session import Calls
from cmcl.client.errors import secret_lost_error
from cmcl.client.wire import Order, Request, given, read, segment, without_none
from cmcl.contract.api.access import ApiKey, CreatedKey, Quotas, Whoami
from cmcl.contract.api.events import CreatedWebhook, Delivery, Webhook


class AccessCalls(Calls):
    """Calls about keys and webhooks."""

    def whoami(self) -> Whoami:
        """Return the name, owner and scopes of this client's key."""
        return self._session.get(Whoami, "/v1/whoami")

    def quotas(self, owner: str | None = None) -> Quotas:
        """Return what an owner uses of its quotas, by default the caller's. `owner` needs the operator's key."""
        request = Request("GET", "/v1/quotas", params=given(owner=owner))
        return read(Quotas, self._session.send(request))

    def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        owner: str | None = None,
        expires_in_days: int | None = None,
    ) -> CreatedKey:
        """Create a key. Only this result has the secret, in `key`. `owner` needs the operator's key."""
        body = without_none(
            name=name, scopes=list(scopes), owner=owner, expires_in_days=expires_in_days
        )
        made = self._session.post(CreatedKey, "/v1/keys", body)
        if made.key is None:
            raise secret_lost_error("key", made.id)
        return made

    def keys(self) -> Iterator[ApiKey]:
        """Iterate over the keys that the caller may see, without their secrets."""
        return self._session.pages(ApiKey, "/v1/keys")

    def key(self, key: str) -> ApiKey:
        """Return a key by its id."""
        return self._session.get(ApiKey, f"/v1/keys/{segment(key)}")

    def revoke_key(self, key: str) -> None:
        """Revoke a key. `key` is its id, never its secret."""
        self._session.delete(f"/v1/keys/{segment(key)}")

    def create_webhook(
        self,
        url: str,
        kinds: Sequence[str] = (),
        model: str | None = None,
        *,
        every_owner: bool = False,
    ) -> CreatedWebhook:
        """Send events to `url`. Only this result has the signing secret, in `secret`.

        Without `kinds`, the webhook receives events that need action; without `model`, events of all
        models of the key's owner. `every_owner` selects all owners and needs the operator's key.
        """
        body = without_none(
            url=url, kinds=list(kinds) or None, model=model, every_owner=every_owner or None
        )
        made = self._session.post(CreatedWebhook, "/v1/webhooks", body)
        if made.secret is None:
            raise secret_lost_error("webhook", made.id)
        return made

    def webhooks(self) -> Iterator[Webhook]:
        """Iterate over all webhooks."""
        return self._session.pages(Webhook, "/v1/webhooks")

    def webhook(self, webhook: str) -> Webhook:
        """Return a webhook."""
        return self._session.get(Webhook, _path(webhook))

    def delete_webhook(self, webhook: str) -> None:
        """Delete a webhook and drop its pending deliveries."""
        self._session.delete(_path(webhook))

    def test_webhook(self, webhook: str) -> Delivery:
        """Send a test message to a webhook."""
        return self._session.post(Delivery, f"{_path(webhook)}/test")

    def deliveries(self, webhook: str, order: Order = "desc") -> Iterator[Delivery]:
        """Iterate over the deliveries of a webhook, newest first; `order="asc"`: oldest first."""
        return self._session.pages(Delivery, f"{_path(webhook)}/deliveries", given(order=order))


def _path(webhook: str) -> str:
    return f"/v1/webhooks/{segment(webhook)}"
