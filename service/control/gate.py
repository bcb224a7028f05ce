"""Is a candidate an answer to what was asked, and is it safe to publish? Pure decisions."""

from workers.contract.errors import InvalidVersion
from workers.contract.job import JobSpec
from workers.contract.version import LearnedDataset, VersionManifest


def check_answers(
    asked: JobSpec, earlier: tuple[LearnedDataset, ...], candidate: VersionManifest
) -> None:
    """Raises InvalidVersion unless the candidate belongs to this attempt and grows the parent.

    `earlier` is the parent's ledger: a candidate that forgot a line of it would leave that dataset
    without protection from then on.
    """
    for field in ("job", "attempt", "model", "version", "parent", "spec"):
        _must_equal(field, getattr(asked, field), getattr(candidate, field))
    _must_equal("dataset", asked.dataset.dataset, candidate.dataset)
    _must_equal("learned (of earlier versions)", earlier, candidate.learned[:-1])
    _check_new_line(asked, candidate.learned[-1])
    _check_certificate(earlier, candidate)


def excess_drift(candidate: VersionManifest) -> str | None:
    """Which earlier datasets would be harmed, in the user's words; None if none is.

    Where the spec has no bound (max_drift), nothing is held against the candidate.
    """
    bound = candidate.spec.drift_bound
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
    return f"scores of earlier datasets: {', '.join(harmed)}; permitted (max_drift): {bound:g}"


def _check_new_line(asked: JobSpec, line: LearnedDataset) -> None:
    _must_equal("learned dataset", asked.dataset.dataset, line.dataset)
    _must_equal("learned version", asked.version, line.version)
    _must_equal("learned pair", asked.dataset.pair, line.pair)
    _must_equal("learned rows", asked.dataset.rows, line.rows)
    digests = tuple(shard.sha256 for shard in asked.dataset.shards)
    _must_equal("learned shards", digests, line.shard_digests)


def _check_certificate(earlier: tuple[LearnedDataset, ...], candidate: VersionManifest) -> None:
    """What has no certificate has not been shown to be safe."""
    uncertified = [line.dataset for line in earlier if line.dataset not in candidate.report.drift]
    if uncertified:
        raise InvalidVersion(f"the candidate has no certificate for {', '.join(uncertified)}")


def _must_equal(what: str, asked: object, answered: object) -> None:
    if asked != answered:
        raise InvalidVersion(f"the candidate's {what} is {answered!r}, asked was {asked!r}")
