"""Observations of a canary, as replicas write them."""

from datetime import UTC, datetime
from typing import Any

from cmcl.contract.policy import Observation, PairAgreement
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.versions import read_live

PAIR = "image--text"


def observe(
    store: ObjectStore, replica: str = "r1", model: str = "scenes", **changes: Any
) -> Observation:
    """Write the observation of one replica for the canary in live.json."""
    pointer = read_live(store, model)
    assert pointer is not None
    assert pointer.canary is not None, "live.json shows no canary"
    known = {
        "replica": replica,
        "revision": pointer.canary.revision,
        "version": pointer.canary.version,
        "at": datetime.now(UTC),
    }
    observation = Observation.model_validate({**known, **changes})
    key = layout.observation(model, pointer.canary.revision, replica)
    store.put(key, observation.model_dump_json().encode())
    return observation


def agreement(queries: int, cosine: float, overlap: float = 1.0) -> dict[str, PairAgreement]:
    """Return the agreement of the pair image--text with these means."""
    sums = PairAgreement(
        queries=queries, cosine_sum=queries * cosine, overlap_sum=queries * overlap
    )
    return {PAIR: sums}
