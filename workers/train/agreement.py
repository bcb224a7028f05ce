"""Whether the pairs of a new dataset agree as those that were learned before them, from moments alone."""

from collections.abc import Iterable

from cmcl.contract.modality import ModalityPair
from cmcl.contract.version import Agreement, Halves, LearnedDataset
from workers.model.memory import in_order
from workers.nullspace.centred import CentredMoments, dataset_moments
from workers.nullspace.moments import PairMoments
from workers.nullspace.two_folds import Choice, score_on

# Of earlier datasets of the same pair, the newest ones that are compared.
MOST_COMPARED = 4
# A mean of N scores of true pairs has a standard error of about 1 / √N in units of the root mean square of all scores.
_ERRORS, _ERRORS_WITHOUT_RELATION = 2.0, 3.0


def halves_of(choice: Choice | None) -> Halves | None:
    """What the halves of a dataset say; None if it has no two halves to compare."""
    if choice is None or choice.correlation is None:
        return None
    return Halves(agreement=choice.score**0.5, correlation=choice.correlation)


def comparable(learned: Iterable[LearnedDataset], pair: ModalityPair) -> list[LearnedDataset]:
    """The newest earlier datasets of the pair whose halves are known."""
    same = {*pair.modalities}
    lines = [line for line in learned if {*line.pair.modalities} == same == line.ridges.keys()]
    return [line for line in lines if line.halves][-MOST_COMPARED:]


def agreement(
    pair: ModalityPair,
    moments: PairMoments,
    halves: Halves,
    earlier: Iterable[tuple[LearnedDataset, CentredMoments]],
) -> Agreement:
    """Compare a new dataset with the earlier one that scores its pairs highest, if that is more than its own halves do.

    `earlier`: sums in the order of each dataset's own pair.
    """
    sums = dataset_moments(in_order(pair, moments))
    first, second = sorted(pair.modalities)
    scores = [
        (
            score_on(in_order(line.pair, known), (line.ridges[first], line.ridges[second]), sums)
            ** 0.5,
            line,
        )
        for line, known in earlier
    ]
    score, line = max(scores, key=lambda each: each[0], default=(0.0, None))
    if line is None or line.halves is None or score < halves.agreement:
        least = _ERRORS_WITHOUT_RELATION * (2 / moments.count) ** 0.5
        return Agreement(dataset=None, score=halves.agreement, least=least)
    noise = (1 / moments.count + 1 / line.rows) ** 0.5
    return Agreement(
        dataset=line.dataset, score=score, least=line.halves.agreement - _ERRORS * noise
    )
