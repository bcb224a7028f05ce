"""The versions of a model, for the scripts beside this: those that exist, oldest first, and then each new one.

The event stream says when there is a new one. The control plane is that of CMCL_URL, with the key in CMCL_KEY.
"""

import os
from collections.abc import Iterator

from cmcl import Client
from cmcl.mirror import Published

URL = os.environ.get("CMCL_URL", "http://127.0.0.1:8000")


def versions(client: Client, model: str, *, once: bool = False) -> Iterator[Published]:
    """Yield every version; unless `once`, wait for new ones without an end."""
    kinds = ["version.published"]
    newest = next(iter(client.all_events(model, kinds, order="desc")), None)
    found = client.model(model)
    head = found.head_version or 0
    for number in range(1, head + 1):
        yield Published(found, client.version(model, number))
    if once:
        return
    after = (newest and newest.id) or 0
    for event in client.follow_events(model, kinds, after, outage_timeout=float("inf")):
        if event.version is not None and event.version > head:
            yield Published(found, client.version(model, event.version))
