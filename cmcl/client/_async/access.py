"""API keys, the identity of the caller, and webhooks."""

from collections.abc import AsyncIterator, Sequence

from cmcl.client._async.session import Calls
from cmcl.client.answers import ApiKey, Delivery, NewApiKey, NewWebhook, Webhook, Whoami
from cmcl.client.errors import secret_lost
from cmcl.client.wire import segment


class AccessCalls(Calls):
    """Calls about keys and webhooks."""

    async def whoami(self) -> Whoami:
        """Name, owner and scopes that the service grants to this client."""
        return await self._session.get(Whoami, "/v1/whoami")

    async def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        owner: str | None = None,
        expires_in_days: int | None = None,
    ) -> NewApiKey:
        """Create a key; only this answer has its secret, in `key`. `owner`: for the operator alone."""
        body = {
            "name": name,
            "scopes": list(scopes),
            "owner": owner,
            "expires_in_days": expires_in_days,
        }
        given = {field: value for field, value in body.items() if value is not None}
        made = await self._session.post(NewApiKey, "/v1/keys", given)
        if made.key is None:
            raise secret_lost("key", made.id)
        return made

    def keys(self) -> AsyncIterator[ApiKey]:
        """All keys that the caller may see, without their secrets."""
        return self._session.pages(ApiKey, "/v1/keys")

    async def key(self, key: str) -> ApiKey:
        """One key, by its id."""
        return await self._session.get(ApiKey, f"/v1/keys/{segment(key)}")

    async def revoke_key(self, key: str) -> None:
        """Revoke a key. `key` is its id, never its secret."""
        await self._session.delete(f"/v1/keys/{segment(key)}")

    async def create_webhook(
        self,
        url: str,
        kinds: Sequence[str] = (),
        model: str | None = None,
        *,
        every_owner: bool = False,
    ) -> NewWebhook:
        """Send events to `url`; only this answer has the secret of the signatures, in `secret`.

        Without `kinds`, events that need action; without `model`, those of every model of the
        key's owner. `every_owner`: of the whole deployment, for the operator alone.
        """
        asked = True if every_owner else None
        body = {"url": url, "kinds": list(kinds) or None, "model": model, "every_owner": asked}
        given = {field: value for field, value in body.items() if value is not None}
        made = await self._session.post(NewWebhook, "/v1/webhooks", given)
        if made.secret is None:
            raise secret_lost("webhook", made.id)
        return made

    def webhooks(self) -> AsyncIterator[Webhook]:
        """All webhooks."""
        return self._session.pages(Webhook, "/v1/webhooks")

    async def webhook(self, webhook: str) -> Webhook:
        """One webhook."""
        return await self._session.get(Webhook, _path(webhook))

    async def delete_webhook(self, webhook: str) -> None:
        """Delete a webhook and drop its pending deliveries."""
        await self._session.delete(_path(webhook))

    async def test_webhook(self, webhook: str) -> Delivery:
        """Send a test message to a webhook."""
        return await self._session.post(Delivery, f"{_path(webhook)}/test")

    def deliveries(self, webhook: str) -> AsyncIterator[Delivery]:
        """Messages that were sent to a webhook, each with its outcome."""
        return self._session.pages(Delivery, f"{_path(webhook)}/deliveries")


def _path(webhook: str) -> str:
    return f"/v1/webhooks/{segment(webhook)}"
