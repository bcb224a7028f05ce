"""A candidate on trial beside the live version of a model, as one replica has it now."""

from dataclasses import dataclass

from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import ServedVersion


@dataclass(frozen=True)
class Trial:
    """`candidate` is None while the replica has not loaded it, or cannot; `refused` says why.

    `revision`: of the pointer that began it; `version`: the candidate's number; `shadow`: of the
    live version's requests, the share to score by the candidate as well.
    """

    model: str
    revision: int
    version: int
    live: ServedVersion
    candidate: ServedVersion | None
    shadow: float
    refused: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Counts are kept by it: a trial that begins again begins at zero."""
        return (self.model, self.revision)


def trial_of(model: str, versions: LiveVersions) -> Trial | None:
    """None where the model has no candidate."""
    live = versions.get(model)
    if live is None or live.trial is None:
        return None
    number = live.trial.version
    reasons = [each.reason for each in versions.refusals(model) if each.version == number]
    return Trial(
        model,
        live.trial.revision,
        number,
        live.version,
        live.candidate,
        live.trial.shadow,
        refused=reasons[0] if reasons and live.candidate is None else None,
    )


def all_trials(versions: LiveVersions) -> list[Trial]:
    """Of every model that has a candidate."""
    found = (trial_of(model, versions) for model in versions.all())
    return [trial for trial in found if trial is not None]
