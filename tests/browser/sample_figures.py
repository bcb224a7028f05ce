"""Measurements of the sample data in place of those of ranks: a formula gives the same ones each time."""

import random

from cmcl.contract.version import (
    Drift,
    HeadCapacity,
    LearnedDataset,
    Protection,
    Quality,
    Recall,
    Solution,
    VersionReport,
)

WIDTH = 256
WIDTHS = {"image": 1280, "text": 384, "audio": 512, "depth": 640}
UPDATES = 780


def recall_of(line: LearnedDataset, version: int) -> Recall:
    """Recall of a dataset in a version: every third one gains, the others lose a little each time."""
    drawn = random.Random(f"{line.name}")
    base, step = drawn.uniform(0.45, 0.9), drawn.choice((0.004, -0.003, -0.009))
    noise = random.Random(f"{line.name} {version}").uniform(-0.004, 0.004)
    value = min(0.99, base + step * (version - line.version) + noise)
    return Recall(
        rows=500,
        at_1=round(value, 4),
        at_5=round(min(1.0, value + 0.07), 4),
        at_10=round(min(1.0, value + 0.09), 4),
        own_at_1=round(value - 0.03, 4),
        own_at_10=round(min(1.0, value + 0.07), 4),
    )


def report_of(learned: tuple[LearnedDataset, ...], drift: float) -> VersionReport:
    """The report of a version with these datasets, the newest last; `drift`: about how far each moves a version."""
    *earlier, new = learned
    version = new.version
    seen = sorted({modality for line in learned for modality in line.pair.modalities})
    used = {
        modality: sum(modality in line.pair.modalities for line in learned) for modality in seen
    }
    return VersionReport(
        final_loss=round(0.9 + 0.05 * len(learned), 4),
        updates=UPDATES,
        ranks=2,
        temperature=0.07,
        seconds={
            "reading": 1.4,
            "moments": 2.2,
            "training": 81.5,
            "limiting": 1.1,
            "certifying": 4.8,
        },
        protection={
            modality: _protection(modality, used[modality]) for modality in new.pair.modalities
        },
        drift={
            line.dataset: Drift(
                since_learned=round(drift * (version - line.version) * _share(line.name), 4),
                against_parent=round(drift * _share(line.name), 4),
            )
            for line in earlier
        },
        quality={
            line.dataset: Quality(
                now=round(-1 + 0.012 * (version - line.version) * _share(line.name), 4),
                best=round(-1 - 0.03 * _share(line.name), 4),
                norm_change=dict.fromkeys(line.pair.modalities, 0.013),
            )
            for line in earlier
        },
        capacity={modality: _capacity(modality, used[modality]) for modality in seen},
        recall_before=recall_of(new, version + 30),
        evaluation={line.dataset: recall_of(line, version) for line in learned},
    )


def solved(report: VersionReport) -> VersionReport:
    """The same of heads that were solved from moments, which closes no entry."""
    seen = sorted(report.capacity)
    solution = Solution(
        ridges=dict.fromkeys(seen, 0.03),
        directions=min(WIDTH, 180 + 20 * len(report.evaluation)),
        groups=(tuple(seen),),
    )
    seconds = {"reading": 1.4, "moments": 6.2, "training": 9.5, "certifying": 4.8}
    changes = {"solution": solution, "seconds": seconds, "updates": 47, "ranks": 1}
    return report.model_copy(update={**changes, "capacity": {}, "protection": {}})


def _share(name: str) -> float:
    return random.Random(f"{name} drift").uniform(0.4, 1.6)


def _protection(modality: str, used: int) -> Protection:
    blocked = 1 - 0.84 ** (used - 1)
    return Protection(
        input_directions=round(WIDTHS[modality] * blocked**0.5),
        input_width=WIDTHS[modality],
        output_directions=round(WIDTH * blocked**0.5),
        output_width=WIDTH,
        blocked_share=round(blocked, 4),
    )


def _capacity(modality: str, used: int) -> HeadCapacity:
    free = 0.84**used
    return HeadCapacity(
        free_share=round(free, 4),
        input_directions=round(WIDTHS[modality] * (1 - free) ** 0.5),
        input_width=WIDTHS[modality],
        output_directions=round(WIDTH * (1 - free) ** 0.5),
        output_width=WIDTH,
    )
