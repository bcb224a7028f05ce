"""The report of `make images` on two builds, and its page."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from deploy.images.measure import Built, Layer, differences, layers_of

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
