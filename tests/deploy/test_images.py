"""Both images, built and run as their user. Takes half an hour, tens of gigabytes and root: for `make
images`, and with CMCL_TEST_IMAGES=service or CMCL_TEST_IMAGES=all.
"""

import json
import os
import shutil
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.images.__main__ import main
from deploy.images.buildah import Buildah, NoBuildah
from deploy.images.measure import SERVICE_BYTES
from tests.architecture.repository import ROOT

ASKED = os.environ.get("CMCL_TEST_IMAGES", "")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDER = Path(os.environ.get("CMCL_TEST_IMAGES_FOLDER", "/var/tmp/cmcl-images"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The report of the program."""
    if ASKED not in ("service", "all"):
        pytest.skip("takes half an hour: set CMCL_TEST_IMAGES to service or all")
    try:
        Buildah.find(FOLDER)
    except NoBuildah as reason:
        pytest.skip(str(reason))
    out = tmp_path_factory.mktemp("images")
    only = ["--only", "service"] if ASKED == "service" else []
    report = out / "report.json"
    places = ["--folder", str(FOLDER), "--out", str(out), "--report", str(report)]
    # Status 1 if a second build, from nothing, gives other files.
    assert main([*only, "--again", *places]) == 0
    yield {**json.loads(report.read_text()), "out": out}
    shutil.rmtree(out)


@pytest.mark.images
@pytest.mark.timeout(3600)
def test_the_service_is_a_small_pull_and_becomes_ready(made: dict[str, Any]) -> None:
    service = made["images"][0]
    assert service["image"].startswith("localhost/cmcl-service:")
    assert service["packed_bytes"] < SERVICE_BYTES
    assert made["trial"]["service_seconds"] > 0


@pytest.mark.images
@pytest.mark.timeout(3600)
def test_a_second_build_gives_the_same(made: dict[str, Any]) -> None:
    digests = [[image["digest"] for image in made[build]] for build in ("images", "again")]
    assert digests[0] == digests[1] != []


@pytest.mark.images
@pytest.mark.timeout(3600)
def test_nothing_is_written_but_into_volumes(made: dict[str, Any]) -> None:
    assert made["trial"]["written_elsewhere"] == []


@pytest.mark.images
@pytest.mark.timeout(3600)
def test_an_image_names_all_its_packages(made: dict[str, Any]) -> None:
    for image in made["images"]:
        target = image["image"].partition(":")[0].rpartition("-")[2]
        sbom = json.loads((made["out"] / f"cmcl-{target}.sbom.cdx.json").read_text())
        assert len(sbom["components"]) == image["packages"] > 50
        assert sbom["metadata"]["component"]["name"] == PROJECT["name"]


@pytest.mark.images
@pytest.mark.timeout(3600)
def test_two_ranks_learn_a_dataset_in_the_worker(made: dict[str, Any]) -> None:
    if ASKED != "all":
        pytest.skip("the worker was not asked for")
    assert made["trial"]["smoke"]["version"] == 2
    assert made["trial"]["smoke"]["ranks"] == 2


def test_a_missing_buildah_is_reported_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoBuildah, match="apt-get install buildah"):
        Buildah.find(tmp_path / "images")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user gets the message earlier")
def test_an_unusable_buildah_is_reported_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "buildah"
    program.write_text("#!/bin/sh\necho 'mount: operation not permitted' >&2\nexit 125\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        NoBuildah, match="cannot create a container here: mount: operation not permitted"
    ):
        Buildah.find(tmp_path / "images")
