"""Whether a candidate matches its job and is safe to publish. Pure functions."""

from dataclasses import dataclass

from cmcl.contract.errors import InvalidVersion
from cmcl.contract.job import JobSpec
from cmcl.contract.policy import GatePolicy
from cmcl.contract.version import LearnedDataset, VersionManifest
from service.states import FailureReason


def check_answers(
    asked: JobSpec, earlier: tuple[LearnedDataset, ...], candidate: VersionManifest
) -> None:
    """Raises InvalidVersion unless the candidate belongs to this attempt and grows the parent.

    `earlier` is the parent's ledger: a candidate that omits one of its lines would leave that
    dataset unprotected from then on.
    """
    for field in ("job", "attempt", "model", "version", "parent", "spec"):
        _must_equal(field, getattr(asked, field), getattr(candidate, field))
    _must_equal("dataset", asked.dataset.dataset, candidate.dataset)
    _must_equal("learned (of earlier versions)", earlier, candidate.learned[:-1])
    _check_new_line(asked, candidate.learned[-1])
    _check_certificate(earlier, candidate)


@dataclass(frozen=True)
class Shortfall:
    """How a candidate violates its model's policy."""

    reason: FailureReason
    message: str


def judge(policy: GatePolicy, candidate: VersionManifest) -> Shortfall | None:
    """The most important policy violation, or None."""
    for rule in (_excess_drift, _excess_forgetting, _missing_gain):
        shortfall = rule(policy, candidate)
        if shortfall is not None:
            return shortfall
    return None


def backward_transfer(candidate: VersionManifest) -> float | None:
    """Mean change of R@1 of the earlier datasets since each was learned; None without held-out rows.

    The BWT of Lopez-Paz & Ranzato, "Gradient Episodic Memory" (NeurIPS 2017), in recall.
    """
    now = candidate.report.evaluation
    changes = [
        now[line.dataset].at_1 - line.recall.at_1
        for line in candidate.learned[:-1]
        if line.recall is not None and line.dataset in now
    ]
    return sum(changes) / len(changes) if changes else None


def gain(candidate: VersionManifest) -> float | None:
    """R@1 of the new dataset above the parent's; None without held-out rows."""
    after, before = (
        candidate.report.evaluation.get(candidate.dataset),
        candidate.report.recall_before,
    )
    return None if after is None or before is None else after.at_1 - before.at_1


def _excess_drift(policy: GatePolicy, candidate: VersionManifest) -> Shortfall | None:
    """Checks the bound of the policy, or else of the specification."""
    bound = policy.max_drift if policy.max_drift is not None else candidate.spec.drift_bound
    if bound is None:
        return None
    names = {learned.dataset: learned.name for learned in candidate.learned}
    harmed = [
        f"{names[dataset]!r} ({dataset}) moved by {drift.since_learned:.4g}"
        for dataset, drift in candidate.report.drift.items()
        if drift.since_learned > bound
    ]
    if not harmed:
        return None
    message = f"scores of earlier datasets: {', '.join(harmed)}; permitted (max_drift): {bound:g}"
    return Shortfall(FailureReason.DRIFT_TOO_LARGE, message)


def _excess_forgetting(policy: GatePolicy, candidate: VersionManifest) -> Shortfall | None:
    floor = policy.min_backward_transfer
    if floor is None or len(candidate.learned) == 1:
        return None
    if candidate.report.not_evaluated:
        return Shortfall(FailureReason.NOT_MEASURED, _not_evaluated_message(candidate))
    change = backward_transfer(candidate)
    if change is None:
        message = "min_backward_transfer is set, and no earlier dataset has held-out rows"
        return Shortfall(FailureReason.NOT_MEASURED, message)
    if change >= floor:
        return None
    message = (
        f"R@1 of the earlier datasets changed by {change:+.4f} on average since they were learned; "
        f"permitted (min_backward_transfer): {floor:+.4f} or more"
    )
    return Shortfall(FailureReason.FORGETTING_TOO_LARGE, message)


def _not_evaluated_message(candidate: VersionManifest) -> str:
    names = {learned.dataset: learned.name for learned in candidate.learned}
    lost = [
        f"{names.get(dataset, dataset)!r} ({dataset}): {why}"
        for dataset, why in candidate.report.not_evaluated.items()
    ]
    return (
        "min_backward_transfer is set, and held-out rows of earlier datasets are missing or damaged in "
        f"object storage: {'; '.join(lost)}. Restore them from a backup and retry the job, or approve "
        "the candidate by hand"
    )


def _missing_gain(policy: GatePolicy, candidate: VersionManifest) -> Shortfall | None:
    if policy.min_gain is None:
        return None
    found = gain(candidate)
    if found is None:
        message = "min_gain is set, and the dataset has no held-out rows"
        return Shortfall(FailureReason.NOT_MEASURED, message)
    if found >= policy.min_gain:
        return None
    message = (
        f"R@1 of the new dataset rose by {found:+.4f} over the parent; "
        f"asked for (min_gain): {policy.min_gain:+.4f} or more"
    )
    return Shortfall(FailureReason.GAIN_TOO_SMALL, message)


def _check_new_line(asked: JobSpec, line: LearnedDataset) -> None:
    _must_equal("learned dataset", asked.dataset.dataset, line.dataset)
    _must_equal("learned version", asked.version, line.version)
    _must_equal("learned pair", asked.dataset.pair, line.pair)
    _must_equal("learned rows", asked.dataset.rows, line.rows)
    digests = tuple(shard.sha256 for shard in asked.dataset.shards)
    _must_equal("learned shards", digests, line.shard_digests)


def _check_certificate(earlier: tuple[LearnedDataset, ...], candidate: VersionManifest) -> None:
    """Every earlier dataset needs a certificate: without one, nothing shows that it is safe."""
    uncertified = [line.dataset for line in earlier if line.dataset not in candidate.report.drift]
    if uncertified:
        raise InvalidVersion(f"the candidate has no certificate for {', '.join(uncertified)}")


def _must_equal(what: str, expected: object, actual: object) -> None:
    if expected != actual:
        raise InvalidVersion(f"the candidate's {what} is {actual!r}, expected {expected!r}")
