"""What the replicas tell of a trial, added up."""

import logging

from pydantic import ValidationError

from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.rollout import Observation, Observed, PairAgreement
from service.database.rows import TrialRecord
from workers.storage import layout
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)


def gather(store: ObjectStore, trial: TrialRecord) -> Observed:
    """The sum of what every replica has told last, also of one that is gone since."""
    found: dict[str, Observation] = {}
    unreadable: dict[str, str] = {}
    for key in store.keys(layout.observations(trial.model, trial.revision)):
        try:
            told = _read(store, key, trial)
        except ObjectNotFound:
            # It was listed, and is gone: the next look finds what took its place.
            continue
        except ValueError as error:
            unreadable[key] = str(error)
            if key not in trial.observed.unreadable:
                logger.warning("an observation is left out: %s", error)
            continue
        before = found.get(told.replica)
        if before is None or before.at < told.at:
            found[told.replica] = told
    return _sum(list(found.values()), unreadable)


def figures(observed: Observed) -> dict[str, object]:
    """For people and events: shares and means instead of sums."""
    return {
        **observed.model_dump(mode="json", exclude={"pairs"}),
        "requests": observed.requests,
        "error_share": observed.error_share,
        "pairs": {
            pair: {
                "queries": told.queries,
                "cosine": told.mean_cosine,
                "overlap": told.mean_overlap,
            }
            for pair, told in observed.pairs.items()
        },
    }


def _read(store: ObjectStore, key: str, trial: TrialRecord) -> Observation:
    """Raises ObjectNotFound, and ValueError in words if it tells nothing of this trial."""
    try:
        told = Observation.model_validate_json(store.read(key))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key} cannot be read: {where or 'JSON'}: {first['msg']}") from error
    if (told.version, told.revision) != (trial.version, trial.revision):
        raise ValueError(
            f"{key} tells of version {told.version} since revision {told.revision}, on trial is "
            f"version {trial.version} since revision {trial.revision}"
        )
    return told


def _sum(told: list[Observation], unreadable: dict[str, str]) -> Observed:
    pairs: dict[str, PairAgreement] = {}
    for each in told:
        for pair, agreement in each.pairs.items():
            pairs[pair] = pairs.get(pair, PairAgreement()) + agreement
    return Observed(
        replicas=len(told),
        answered=sum(each.answered for each in told),
        failed=sum(each.failed for each in told),
        shadowed=sum(each.shadowed for each in told),
        refused={each.replica: each.refused for each in told if each.refused is not None},
        pairs=dict(sorted(pairs.items())),
        unreadable=unreadable,
        at=max((each.at for each in told), default=None),
    )
