"""Each import contract detects a violation; that none is there is shown by `make check`."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT

LINTER = Path(sys.executable).parent / "lint-imports"

# One violation of each contract: contract, importing module, what it must not import.
PLANTED = [
    ("the control plane is layered", "service.core.states", "service.database.tables"),
    ("the data plane is layered", "workers.model.heads", "workers.train.loop"),
    ("training is layered", "workers.train.rows", "workers.train.loop"),
    ("serving is layered", "workers.serve.versions.live", "workers.serve.background"),
    (
        "routes of serving do not import each other",
        "workers.serve.api.wire.vectors",
        "workers.serve.api.context",
    ),
    ("a replica answers without Ray", "workers.serve.versions.follower", "ray"),
    ("workers never import the service", "workers.files.shards", "service.core.states"),
    (
        "service and workers import contract, storage, tracing, memory and fairness of cmcl, the service and model cards its pictures, and nothing else of it",
        "workers.train.loop",
        "cmcl.pictures.picture",
    ),
    ("cmcl is layered", "cmcl.contract.model", "cmcl.client"),
    ("pictures are layered", "cmcl.pictures.scales", "cmcl.pictures.matrix"),
    ("the service imports nothing of the workers, nor Ray, nor torch", "service.app", "torch"),
    ("the client imports neither service nor workers", "cmcl.client.wire", "workers.files.shards"),
    (
        "the maths imports torch and no other package of the project",
        "workers.nullspace.moments",
        "cmcl.contract.modality",
    ),
    ("contract and storage import neither torch nor Ray", "cmcl.contract.job", "ray"),
    (
        "model and methods import neither Ray nor HTTP nor buckets",
        "workers.methods.method",
        "boto3",
    ),
    ("users' raw rows are read without Ray and torch", "workers.prepare.plan", "ray"),
]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """The linter on the packages of one folder, wherever else they may be installed."""
    return subprocess.run(
        [str(LINTER), "--no-cache", "--no-logo"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The linter's report on a copy in which every contract is violated once."""
    copy = tmp_path_factory.mktemp("planted")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in ("cmcl", "service", "workers"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("*.pyc"))
    for _, importer, imported in PLANTED:
        path = copy / f"{importer.replace('.', '/')}.py"
        path.write_text(f"{path.read_text()}\nimport {imported}\n")
    result = lint(copy)
    assert result.returncode == 1, result.stderr
    return result.stdout


@pytest.mark.parametrize(("contract", "importer", "imported"), PLANTED)
def test_a_planted_violation_is_caught_and_named(
    report: str, contract: str, importer: str, imported: str
) -> None:
    assert f"{contract} BROKEN" in report
    assert re.search(rf"{re.escape(importer)} -> {re.escape(imported)} \(l\.\d+\)", report)


def test_every_contract_has_a_planted_violation() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = {contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]}
    assert contracts == {contract for contract, _, _ in PLANTED}
