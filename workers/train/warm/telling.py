"""What the job of an attempt tells while it has no ranks yet. Loaded by the few jobs that have to."""

from datetime import UTC, datetime

from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.job import Phase, Progress
from workers.storage.layout import run_progress
from workers.storage.uris import open_store
from workers.train.warm.desk import Attempt


def tell(attempt: Attempt, phase: Phase, note: str | None = None) -> None:
    """Write its progress. A store that does not take it is no reason to give the attempt up."""
    progress = Progress(phase=phase, note=note, at=datetime.now(UTC))
    store = open_store(attempt.store_uri)
    try:
        store.put(run_progress(attempt.job, attempt.attempt), progress.model_dump_json().encode())
    except StorageUnavailable as error:
        print(f"its progress was not written: {error}", flush=True)
