"""The repository installs and runs anywhere: no registry's address, no path of one machine."""

import re
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT, repository_files, text_files

# Written so that this file does not match itself.
REGISTRIES = re.compile(
    r"(pypi\.(org|python)|pythonhosted\.(org)|docker\.(io|com)|(ghcr|quay|gcr)\.(io)|nvcr\.(io)"
    r"|public\.ecr\.(aws)|registry\.npmjs|anaconda\.(org)|download\.pytorch|--(extra-)?index-url)",
    re.IGNORECASE,
)
MACHINE_PATHS = re.compile(r"(?<![\w.>)}*-])/(work|root|home/[a-z]+)/")
LOCKS = [path for path in repository_files() if path.suffix == ".lock"]


@pytest.mark.parametrize("pattern", [REGISTRIES, MACHINE_PATHS], ids=["registry", "machine"])
def test_no_file_has_an_address_that_is_good_in_one_place_only(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path}:{number}: {line.strip()}"
        for path, text in text_files()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (REGISTRIES, "https://pypi." + "org/simple"),
        (REGISTRIES, "FROM docker." + "io/library/python"),
        (REGISTRIES, "pip install --index" + "-url x"),
        (MACHINE_PATHS, "see /work" + "/main/x"),
        (MACHINE_PATHS, "file:///root" + "/x"),
        (MACHINE_PATHS, '"/home/somebody' + '/x"'),
    ],
)
def test_a_planted_address_is_found(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


def requirements(path: Path) -> list[str]:
    """Requirements with their continued lines, without comments."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def test_lock_files_are_found() -> None:
    assert Path("requirements.lock") in LOCKS


@pytest.mark.parametrize("lock", LOCKS, ids=str)
def test_every_requirement_has_one_version_and_its_hashes_and_no_address(lock: Path) -> None:
    locked = requirements(ROOT / lock)
    assert locked
    for requirement in locked:
        assert re.match(r"[a-z0-9._-]+(\[[a-z0-9,_-]+\])?==\S+ ", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement
    assert "://" not in (ROOT / lock).read_text()
