"""Helpers for tests of deliveries."""

import asyncio
from typing import Any

from service.database.engine import Database
from service.events.webhook_delivery import Deliverer, Sender
from tests.fakes.control_plane import ControlPlane


class WebhookHarness:
    """A control plane whose deliveries are sent by the test."""

    def __init__(self, plane: ControlPlane, answer_seconds: float = 15) -> None:
        self.plane = plane
        self.outcomes: list[str] = []
        self.answer_seconds = answer_seconds

    def deliverer(self, database: Database | None = None, pause_seconds: float = 0.5) -> Deliverer:
        """One of this control plane's, or of another process."""
        prefixes = self.plane.context.settings.webhook_prefixes
        return Deliverer(
            database or self.plane.context.database,
            Sender(prefixes, self.answer_seconds),
            self.plane.clock,
            self.outcomes.append,
            pause_seconds,
        )

    def deliver(self) -> None:
        """Send what is due now."""
        asyncio.run(self.deliverer().round())

    def make(self, url: str, **changes: object) -> dict[str, Any]:
        """Create a webhook; return the response."""
        body = {"url": url, "kinds": ["job.queued"], **changes}
        response = self.plane.client.post("/v1/webhooks", json=body)
        assert response.status_code == 201, response.text
        made: dict[str, Any] = response.json()
        return made

    def webhook(self, webhook: str) -> dict[str, Any]:
        """Read the webhook."""
        found: dict[str, Any] = self.plane.client.get(f"/v1/webhooks/{webhook}").json()
        return found

    def deliveries(self, webhook: str) -> list[dict[str, Any]]:
        """The newest first."""
        response = self.plane.client.get(f"/v1/webhooks/{webhook}/deliveries")
        assert response.status_code == 200, response.text
        items: list[dict[str, Any]] = response.json()["items"]
        return items
