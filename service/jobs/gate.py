"""Whether a candidate matches its job and is safe to publish. Pure functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cmcl.contract.api.jobs import Bound, BoundName, BoundSource, FailureReason
from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.errors import InvalidVersion
from cmcl.contract.job import ErasedRow, JobSpec
from cmcl.contract.model import Gate, ModelSpec
from cmcl.contract.version import (
    LearnedDataset,
    VersionManifest,
    datasets_to_measure,
    datasets_to_merge,
)


def check_answers(
    asked: JobSpec,
    earlier: tuple[LearnedDataset, ...],
    candidate: VersionManifest,
    theirs: tuple[LearnedDataset, ...] = (),
) -> None:
    """Raises InvalidVersion unless the candidate belongs to this attempt, and its lineage is what the job makes of the
    parent's.

    `earlier` is the parent's lineage: a candidate that omits one of its lines would leave that
    dataset unprotected from then on. `theirs` is that of the version to merge.
    """
    for field in ("job", "attempt", "kind", "model", "version", "parent"):
        _must_equal(field, getattr(asked, field), getattr(candidate, field))
    _must_equal("spec", _known_to(candidate, asked.spec), candidate.spec)
    if asked.dataset is not None:
        _must_equal("dataset", asked.dataset.dataset, candidate.dataset)
        _must_equal("learned (of earlier versions)", earlier, candidate.learned[:-1])
        _check_new_line(asked, asked.dataset, candidate.learned[-1])
    elif asked.unlearns is not None:
        gone = next((line for line in earlier if line.dataset == asked.unlearns), None)
        _must_equal("unlearned dataset", gone, candidate.unlearned)
        _check_changed(asked, tuple(line for line in earlier if line is not gone), candidate)
        earlier = candidate.learned
    elif asked.erases is not None:
        # What the sums of the rest are is the worker's to say.
        rest = (
            _with_receipt(asked, asked.erases, line, candidate.erased_from)
            if line.dataset == asked.erases.dataset
            else line
            for line in earlier
        )
        _check_changed(asked, tuple(rest), candidate)
        earlier = candidate.learned
    else:
        _must_equal("merged version", asked.merges, candidate.merged)
        joined = {"version": asked.version, "reference": None}
        new = (line.model_copy(update=joined) for line in datasets_to_merge(earlier, theirs))
        _must_equal("learned", (*earlier, *new), candidate.learned)
        earlier = candidate.learned
    _check_certificate(asked, earlier, candidate)


def _known_to(candidate: VersionManifest, spec: ModelSpec) -> ModelSpec:
    """The specification without modalities that were added while the candidate was trained."""
    known = {
        name: each for name, each in spec.modalities.items() if name in candidate.spec.modalities
    }
    return spec.model_copy(update={"modalities": known})


@dataclass(frozen=True)
class Shortfall:
    """How a candidate violates its model's gate.

    `reason`: why it is rejected; None: a bound that chance sets, for a person to judge.
    """

    reason: FailureReason | None
    message: str


@dataclass(frozen=True)
class Check:
    """What a bound permits, None if it is not set, and what the candidate has, None if that was not measured."""

    permitted: float | None
    found: float | None
    shortfall: Shortfall | None = None
    source: BoundSource = "gate"

    def missed(self, reason: FailureReason | None, message: str) -> "Check":
        """The same, violated."""
        return replace(self, shortfall=Shortfall(reason, message))


def bounds(gate: Gate, candidate: VersionManifest) -> list[Bound]:
    """Every bound, set or not, the most important one first."""
    return [
        Bound(
            name=name,
            permitted=each.permitted,
            found=each.found,
            met=None if each.permitted is None else each.shortfall is None,
            source=each.source,
            message=None if each.shortfall is None else each.shortfall.message,
        )
        for name, each in _checks(gate, candidate).items()
    ]


def _checks(gate: Gate, candidate: VersionManifest) -> dict[BoundName, Check]:
    checks = {name: check(gate, candidate) for name, check in _CHECKS.items()}
    if gate.bounds == "auto":
        derived = bounds_by_chance(candidate)
        checks |= {name: each for name, each in derived.items() if checks[name].permitted is None}
    return checks


def worst_shortfall(gate: Gate, candidate: VersionManifest) -> Shortfall | None:
    """The most important gate violation, or None. One of a bound that was set comes first."""
    shortfalls = [each.shortfall for each in _checks(gate, candidate).values() if each.shortfall]
    return min(shortfalls, key=lambda each: each.reason is None, default=None)


def backward_transfer(candidate: VersionManifest) -> float | None:
    """Mean change of R@1 of the earlier datasets since each was learned; None without held-out rows.

    The BWT of Lopez-Paz & Ranzato, "Gradient Episodic Memory" (NeurIPS 2017), in recall.
    """
    now = candidate.report.evaluation
    changes = [
        now[line.dataset].at_1 - line.recall.at_1
        for line in candidate.earlier
        if line.recall is not None and line.dataset in now
    ]
    return sum(changes) / len(changes) if changes else None


def gain(candidate: VersionManifest) -> float | None:
    """R@1 of the new dataset above the parent's; None without one, or without held-out rows."""
    if candidate.dataset is None:
        return None
    after, before = (
        candidate.report.evaluation.get(candidate.dataset),
        candidate.report.recall_before,
    )
    return None if after is None or before is None else after.at_1 - before.at_1


def _drift(gate: Gate, candidate: VersionManifest) -> Check:
    """A bound that the gate does not set is that of the specification."""
    drifts = {name: each.since_learned for name, each in candidate.report.drift.items()}
    is_set = gate.max_drift is not None
    bound = gate.max_drift if is_set else candidate.spec.drift_bound
    check = Check(
        bound, max(drifts.values(), default=None), source="gate" if is_set else "specification"
    )
    if bound is None:
        return check
    beyond = {name: drift for name, drift in drifts.items() if drift > bound}
    message = f"scores of earlier datasets moved further than {100 * bound:g} %, the largest permitted drift"
    return _of_each(candidate, check, beyond, FailureReason.DRIFT_TOO_LARGE, message)


def _of_each(
    candidate: VersionManifest,
    check: Check,
    beyond: Mapping[str, float],
    reason: FailureReason,
    message: str,
) -> Check:
    """`beyond`: by dataset that violates the bound, by which share."""
    if not beyond:
        return replace(check, shortfall=_some_unmeasured(candidate))
    names = _names(candidate)
    harmed = ", ".join(f"{names[dataset]} by {100 * by:.4g} %" for dataset, by in beyond.items())
    return check.missed(reason, f"{message}: {harmed}")


def _names(candidate: VersionManifest) -> dict[str, str]:
    """By dataset of the lineage, its name and id."""
    return {line.dataset: f"{line.name!r} ({line.dataset})" for line in candidate.learned}


def _some_unmeasured(candidate: VersionManifest) -> Shortfall | None:
    """Where the bound was set after the candidate: without one, a version measures earlier datasets in turn."""
    earlier, measured = candidate.earlier, candidate.report.drift
    if all(line.dataset in measured for line in earlier):
        return None
    message = (
        f"the gate bounds all {len(earlier)} earlier datasets, and the candidate, which was begun without that bound, "
        f"measured {len(measured)} of them. Retry the job"
    )
    return Shortfall(FailureReason.NOT_MEASURED, message)


def _overlap(gate: Gate, candidate: VersionManifest) -> Check:
    """The smallest overlap with the parent, measured where rows are held out, and else expected from moments."""
    found = {
        dataset: each.expected if each.measured is None else each.measured
        for dataset, each in candidate.report.overlap.items()
    }
    check = Check(gate.min_overlap, min(found.values(), default=None))
    if gate.min_overlap is None or not candidate.earlier:
        return check
    beyond = {name: 1 - share for name, share in found.items() if share < gate.min_overlap}
    message = (
        "the ten best results on earlier datasets changed from the parent by more than "
        f"{100 * (1 - gate.min_overlap):.4g} %"
    )
    return _of_each(candidate, check, beyond, FailureReason.RESULTS_CHANGED, message)


def _forgetting(gate: Gate, candidate: VersionManifest) -> Check:
    floor, change = gate.min_backward_transfer, backward_transfer(candidate)
    check = Check(floor, change)
    if floor is None or not candidate.earlier:
        return check
    if candidate.report.not_evaluated:
        message = _not_evaluated_message(candidate)
        return check.missed(FailureReason.NOT_MEASURED, message)
    if (unmeasured := _some_unmeasured(candidate)) is not None:
        return replace(check, shortfall=unmeasured)
    if change is None:
        message = "the gate bounds the change of R@1, and no earlier dataset has held-out rows"
        return check.missed(FailureReason.NOT_MEASURED, message)
    if change >= floor:
        return check
    message = (
        f"R@1 of the earlier datasets changed by {100 * change:+.2f} points on average since they were "
        f"learned; permitted: {100 * floor:+.2f} points or more"
    )
    return check.missed(FailureReason.FORGETTING_TOO_LARGE, message)


def _not_evaluated_message(candidate: VersionManifest) -> str:
    names = _names(candidate)
    lost = [
        f"{names.get(dataset, dataset)}: {why}"
        for dataset, why in candidate.report.not_evaluated.items()
    ]
    return (
        "the gate bounds the change of R@1, and held-out rows of earlier datasets are missing or damaged in "
        f"object storage: {'; '.join(lost)}. Restore them from a backup and retry the job"
    )


def _gain(gate: Gate, candidate: VersionManifest) -> Check:
    found = gain(candidate)
    check = Check(gate.min_gain, found)
    if gate.min_gain is None or candidate.dataset is None:
        return check
    if found is None:
        message = "the gate asks for a gain of R@1, and the dataset has no held-out rows"
        return check.missed(FailureReason.NOT_MEASURED, message)
    if found >= gate.min_gain:
        return check
    message = (
        f"R@1 of the new dataset changed by {100 * found:+.2f} points from the parent; "
        f"asked for: {100 * gate.min_gain:+.2f} points or more"
    )
    return check.missed(FailureReason.GAIN_TOO_SMALL, message)


def _agreement(_: Gate, candidate: VersionManifest) -> Check:
    found = candidate.report.agreement
    return Check(None, None if found is None else found.score)


# The most important one first.
_CHECKS: dict[BoundName, Callable[[Gate, VersionManifest], Check]] = {
    "max_drift": _drift,
    "min_backward_transfer": _forgetting,
    "min_overlap": _overlap,
    "min_gain": _gain,
    "min_agreement": _agreement,
}


# --- By chance ------------------------------------------------------------------------------------

# The mean change of R@1 may be this many standard errors below zero.
_ERRORS = 3.0


def bounds_by_chance(candidate: VersionManifest) -> dict[BoundName, Check]:
    """The bounds that follow from how the two halves of each dataset differ, beside what the candidate has.

    Of the earlier datasets, the one that is nearest to its bound or furthest beyond. A bound is missing where nothing was
    measured.
    """
    report, names = candidate.report, _names(candidate)
    found = dict[BoundName, Check]()
    overlaps = [
        (each.expected, each.halves, names[dataset])
        for dataset, each in report.overlap.items()
        if each.halves is not None
    ]
    if overlaps:
        share, least, name = min(overlaps, key=lambda each: each[0] - each[1])
        message = (
            f"of the ten best results on {name} {100 * share:.4g} % are expected to stay the same; versions from the two "
            f"halves of its rows share {100 * least:.4g} %"
        )
        found["min_overlap"] = _by_chance(least, share, message)
    change, variances = backward_transfer(candidate), _variances(candidate)
    if change is not None and variances:
        floor = -_ERRORS * sum(variances) ** 0.5 / len(variances)
        message = (
            f"R@1 of the earlier datasets changed by {100 * change:+.2f} points on average since they were learned; by "
            f"chance it changes by {100 * floor:+.2f} points at most"
        )
        found["min_backward_transfer"] = _by_chance(floor, change, message)
    if (pairs := report.agreement) is not None:
        found["min_agreement"] = _by_chance(pairs.least, pairs.score, pairs.remark(names))
    return found


def _by_chance(least: float, found: float, message: str) -> Check:
    check = Check(least, found, source="halves")
    return check.missed(None, message) if found < least else check


def _variances(candidate: VersionManifest) -> list[float]:
    """Of the change of each recall, if queries whose results may change by chance find their hits anew."""
    report, variances = candidate.report, list[float]()
    for line in candidate.earlier:
        now, same = report.evaluation.get(line.dataset), report.overlap.get(line.dataset)
        if line.recall is None or now is None or same is None or same.halves is None:
            continue
        # Not 0 where all or none are found.
        share = (line.recall.at_1 * now.rows + 1) / (now.rows + 2)
        variances.append(2 * share * (1 - share) * (1 - same.halves) / now.rows)
    return variances


# --- What the candidate answers -------------------------------------------------------------------


def _check_new_line(asked: JobSpec, dataset: DatasetManifest, line: LearnedDataset) -> None:
    _must_equal("learned dataset", dataset.dataset, line.dataset)
    _must_equal("learned version", asked.version, line.version)
    _must_equal("learned pair", dataset.pair, line.pair)
    _must_equal("learned rows", dataset.rows, line.rows)
    digests = tuple(shard.sha256 for shard in dataset.shards)
    _must_equal("learned shards", digests, line.shard_digests)


def _with_receipt(
    asked: JobSpec, row: ErasedRow, before: LearnedDataset, after: LearnedDataset | None
) -> LearnedDataset:
    """Return the line without the row. Raises InvalidVersion if its receipt, which is signed, does not belong to the job."""
    if after is None or after.dataset != before.dataset:
        raise InvalidVersion(f"the candidate erased no row from {before.dataset}")
    receipt = after.erased[-1]
    expected = {
        **row.model_dump(include={"row", "requested_at", "requested_by"}),
        "before": before.exact_sums and before.exact_sums.sha256,
        "after": after.exact_sums and after.exact_sums.sha256,
        "job": asked.job,
        "signature": None,
    }
    for field, value in expected.items():
        _must_equal(f"receipt's {field}", value, getattr(receipt, field))
    _must_equal("rows erased earlier", before.erased, after.erased[:-1])
    _must_equal("rows", before.rows - receipt.copies, after.rows)
    return after


def _check_changed(
    asked: JobSpec, rest: tuple[LearnedDataset, ...], candidate: VersionManifest
) -> None:
    """The lineage is `rest`, and lines may be measured from the candidate on."""
    _must_equal("dataset", None, candidate.dataset)
    without = [line.model_copy(update={"reference": None}) for line in candidate.learned]
    _must_equal("learned", [each.model_copy(update={"reference": None}) for each in rest], without)
    for before, after in zip(rest, candidate.learned, strict=True):
        if after.reference not in (before.reference, asked.version):
            raise InvalidVersion(f"the candidate measures {after.dataset} from {after.reference}")


def _check_certificate(
    asked: JobSpec, earlier: tuple[LearnedDataset, ...], candidate: VersionManifest
) -> None:
    """The earlier datasets whose turn it is need a certificate. Bounds of the gate need all of them (`worst_shortfall`)."""
    by_itself = asked.model_copy(update={"measures_all": False})
    due = datasets_to_measure(by_itself, earlier)
    uncertified = [line.dataset for line in due if line.dataset not in candidate.report.drift]
    if uncertified:
        raise InvalidVersion(f"the candidate has no certificate for {', '.join(uncertified)}")


def _must_equal(what: str, expected: object, actual: object) -> None:
    if expected != actual:
        raise InvalidVersion(f"the candidate's {what} is {actual!r}, expected {expected!r}")
