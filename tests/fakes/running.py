"""The progress that one attempt shows, as the control plane reads it."""

from contextlib import suppress

from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.job import Progress, submission_id
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.running import read_progress, read_running

# Listings in which each newest progress was replaced before it was read.
_TRIES = 10


def newest_progress(store: ObjectStore, job: str, attempt: int) -> Progress | None:
    """The progress of one attempt; None if it shows none that can be read."""
    name = submission_id(job, attempt)
    for _ in range(_TRIES):
        shown = read_running(store).get(name)
        if shown is None or not shown.name:
            break
        # Without an object it was replaced after the listing.
        with suppress(ObjectNotFound):
            return read_progress(store, name, shown)
    return None
