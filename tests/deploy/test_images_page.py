"""The report of `make images` on two builds, and its page."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from deploy.images.measure import Built, Layer, differences, layers_of
from deploy.images.page import markdown

BASE = Layer("sha256:" + "a" * 64, 47_000_000, "/bin/sh")
CODE = Layer("sha256:" + "b" * 64, 1_200_000, "/bin/sh -c #(nop) COPY dir:0123abcd in /opt/cmcl ")
SERVICE = Built(
    image="localhost/cmcl-service:1.2.3",
    digest="sha256:" + "c" * 64,
    user="10001:10001",
    build_seconds=61.4,
    packed_bytes=210_000_000,
    unpacked_bytes=670_000_000,
    packages=84,
    versions={"python": "3.13.5", "pyarrow": "26.0.1"},
    layers=[BASE, CODE],
)
OTHER_FILES = replace(CODE, files="sha256:" + "d" * 64)


def report(again: list[Built], trial: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": {"cpu": "a fast one", "load": [1.0, 2.0]},
        "configuration": {"buildah": "1.39.3", "storage driver": "overlay"},
        "images": [asdict(SERVICE)],
        "again": [asdict(image) for image in again],
        "trial": {"service_seconds": 3.2, "written_elsewhere": [], **trial},
    }


def test_two_builds_that_are_alike_differ_in_nothing() -> None:
    slower = replace(SERVICE, build_seconds=99.0, layers=[replace(BASE, packed_bytes=1), CODE])
    assert differences(SERVICE, slower) == []


def test_a_layer_with_other_files_is_named_by_its_step() -> None:
    second = replace(SERVICE, layers=[BASE, OTHER_FILES], digest="sha256:" + "e" * 64)
    (line,) = differences(SERVICE, second)
    assert line.startswith("localhost/cmcl-service:1.2.3: layer 1 differs")
    assert "COPY" in line


def test_another_number_of_layers_or_another_configuration_is_reported() -> None:
    assert differences(SERVICE, replace(SERVICE, layers=[BASE])) == [
        "localhost/cmcl-service:1.2.3: 2 layers, then 1"
    ]
    (line,) = differences(SERVICE, replace(SERVICE, digest="sha256:" + "e" * 64))
    assert "another configuration" in line


def test_steps_without_files_have_no_layer() -> None:
    manifest = {"layers": [{"size": 5}, {"size": 7}]}
    config = {
        "rootfs": {"diff_ids": ["sha256:1", "sha256:2"]},
        "history": [
            {"created_by": "base"},
            {"created_by": "USER 10001", "empty_layer": True},
            {"created_by": "COPY"},
        ],
    }
    assert layers_of(manifest, config) == [
        Layer("sha256:1", 5, "base"),
        Layer("sha256:2", 7, "COPY"),
    ]


def test_a_manifest_that_does_not_fit_its_configuration_is_refused() -> None:
    config = {"rootfs": {"diff_ids": ["sha256:1"]}, "history": [{"created_by": "base"}]}
    with pytest.raises(ValueError, match="zip"):
        layers_of({"layers": []}, config)


def test_the_page_has_the_goal_beside_what_was_measured() -> None:
    page = markdown(report([], {}))
    assert "| service, pull, MB | 210 | under 350 |" in page
    assert "| files written outside volumes | 0 | 0 |" in page
    assert "- storage driver: overlay" in page
    assert "| cmcl-service | 210 | 670 | 84 | python 3.13.5, pyarrow 26.0.1 | 10001:10001 |" in page
    assert "| `COPY in /opt/cmcl` | 1.2 | `bbbbbbbbbbbb` |" in page
    assert "a second time" not in page
    assert "Built in 61 s; configuration `sha256:cccc" in page


def test_the_page_says_which_layers_a_second_build_made_otherwise() -> None:
    page = markdown(report([replace(SERVICE, layers=[BASE, OTHER_FILES])], {}))
    assert "| layers of cmcl-service that a second build made alike | 1 | 2 |" in page
    assert "A second time, from nothing, in 61 s: the same." in page
    assert "| the base | 47.0 | `aaaaaaaaaaaa` | the same |" in page
    assert "| `COPY in /opt/cmcl` | 1.2 | `bbbbbbbbbbbb` | `dddddddddddd` |" in page


def test_a_step_is_quoted_as_in_the_dockerfile() -> None:
    made_by = "|1 SOURCE_DATE_EPOCH=1580601600 /bin/sh -c groupadd cmcl     && useradd cmcl | cat"
    step = replace(CODE, made_by=made_by)
    document = report([], {})
    document["images"] = [asdict(replace(SERVICE, layers=[step]))]
    assert "| `groupadd cmcl && useradd cmcl \\| cat` | 1.2 |" in markdown(document)


def test_the_page_lists_what_ran_and_what_was_written() -> None:
    smoke = {"version": 2, "ranks": 2, "recall_at_10": 0.35681818, "seconds": 24.2}
    trial = {"ray_seconds": 5.1, "smoke": smoke, "written_elsewhere": ["var/tmp/x"]}
    page = markdown(report([], trial))
    assert "| ranks that trained a dataset | 2 | 2 |" in page
    assert "| recall@10 of the embeddings, equal to training's | 0.3568 |" in page
    assert "| written outside volumes | var/tmp/x |" in page
