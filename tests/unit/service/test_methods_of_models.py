"""Methods that a model names, as the control plane sees them: by name, and never imported."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path

import pytest

from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.outside_method import MODULE, NAME, installed


def test_a_method_that_is_not_installed_is_refused_with_those_that_are(
    plane: ControlPlane, tmp_path: Path
) -> None:
    body = {**SPEC, "name": "new", "method": NAME}
    answer = plane.client.post("/v1/models", json=body)
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == "method"
    assert "permitted: vanilla" in error["message"]
    with installed(tmp_path):
        assert plane.client.post("/v1/models", json=body).status_code == 201
        assert MODULE not in sys.modules, "the service has no torch to import it with"
    # A model outlives the installation that made it.
    assert plane.client.get("/v1/models/new").json()["method"] == NAME


class _Metadata(DistributionFinder):
    """Finds no package, and checks during the search that the database is writable."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self.scans = 0

    def find_spec(self, *_: object) -> None:
        return None

    def find_distributions(
        self, _: DistributionFinder.Context | None = None
    ) -> Iterator[Distribution]:
        with closing(sqlite3.connect(self._database, timeout=0)) as connection:
            connection.execute("BEGIN IMMEDIATE")
        self.scans += 1
        return iter(())


def test_packages_are_not_searched_for_a_method_while_the_database_is_locked(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = _Metadata(tmp_path / "cmcl.db")
    monkeypatch.setattr(sys, "meta_path", [metadata, *sys.meta_path])
    body = {**SPEC, "name": "new", "method": NAME}
    assert plane.client.post("/v1/models", json=body).status_code == 422
    assert metadata.scans == 1
