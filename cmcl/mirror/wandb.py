"""Weights & Biases: a run for each model, a step for each version.

The package writes to files on this disk first and sends them by itself, so nothing waits for its server. With
`--offline` (or WANDB_MODE=offline) `wandb sync` sends them later.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cmcl.mirror.loop import MirrorError, Published, Target, optional_module


class WandbTarget(Target):
    """A project. Its last version is in the state file alone, because files that are not sent cannot be asked."""

    def __init__(self, project: str, folder: Path, offline: bool, service: str) -> None:
        self._wandb = optional_module("wandb", "wandb")
        self._project = project
        self._folder = folder
        self._mode = "offline" if offline else None
        self._service = service
        self._runs: dict[str, Any] = {}

    def write_version(self, published: Published) -> None:
        version = published.version
        run = self._run(published.model.name, published.settings())
        values: dict[str, Any] = {**published.metrics(), "pictures": self._html(published)}
        try:
            run.log(values, step=version.version, commit=True)
        except self._wandb.Error as error:
            raise MirrorError(f"Weights & Biases: {error}") from error
        lines = [f"{line.name} ({line.dataset})" for line in version.lineage]
        run.summary.update({"version": version.version, "learned": lines})

    def write_live(self, model: str, version: int) -> None:
        self._run(model, {}).summary["live_version"] = version

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()

    def _html(self, published: Published) -> Any:
        return self._wandb.Html(published.picture(), inject=False)

    def _run(self, model: str, settings: Mapping[str, str]) -> Any:
        if model not in self._runs:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._runs[model] = self._wandb.init(
                    project=self._project,
                    name=model,
                    # The same after a restart, so that the run continues.
                    id=uuid5(NAMESPACE_URL, f"{self._service}/{model}").hex,
                    resume="allow",
                    dir=str(self._folder),
                    mode=self._mode,
                    reinit="create_new",
                    config={**settings, "service": self._service},
                )
            except self._wandb.Error as error:
                raise MirrorError(f"Weights & Biases: {error}") from error
        return self._runs[model]
