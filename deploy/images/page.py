"""Markdown page of the results of `deploy.images`."""

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from benchmarks.command_line import listed, table
from deploy.images.measure import SERVICE_BYTES

_QUESTION = (
    "Do both images build without docker and without an image registry? Do they work as an "
    "unprivileged user? How large are they, and does a second build give the same files?"
)
_HOW = """\
- The base is a Debian created by debootstrap, with Python and certificates. Packages come from the
  package index, pinned by the digests of the lock.
- *pull*: compressed layers, as in a registry; the goal refers to this. *on a node*: all files,
  unpacked.
- buildah isolates by chroot here: processes see only the image's files, and the machine's network. They
  run as the image's user, and may write to volumes at `/tmp`, at their home and for the store.
- The test: Ray's head and the endpoint in the worker's image, the control plane in the service's.
  Then [smoke.py](../../deploy/smoke/smoke.py) runs in the worker's image: it posts a dataset of the example
  stream, waits for the version, embeds the held-out rows, and compares their recall with the figure
  from training.
- The second build starts in an empty folder, with a new base. Layers are compared by the digest of
  their files, images by the digest of their configuration, which names all layers.
- *load*: the load average before the first build and after the last. The first build is fast if an
  earlier one left layers in the folder; both times include downloads from the package index."""
_RESULTS = {
    "ray_seconds": "Ray's head responded after, s",
    "service_seconds": "the control plane responded to `/readyz` after, s",
    "embeddings_seconds": "the endpoint responded to `/readyz` after, s",
}
_SMOKE = {
    "ranks": "ranks that trained the dataset",
    "version": "published version",
    "recall_at_10": "recall@10 of the embeddings, equal to training's",
    "seconds": "seconds from the post",
}


def markdown(report: Mapping[str, Any]) -> str:
    """Render the whole page."""
    images, again = report["images"], report["again"]
    parts = [
        "# Images",
        "## Question\n" + _QUESTION,
        "## Machine\n" + listed(report["machine"]),
        "## Configuration\n" + listed(report["configuration"]) + "\n\n" + _HOW,
        "## Result\n" + _goals(report),
        "### Sizes, MB\n" + _sizes(images),
        *(_layers(image, other) for image, other in zip_longest(images, again)),
        "### What ran in them\n" + _trial(report["trial"]),
    ]
    return "\n\n".join(parts) + "\n"


def _goals(report: Mapping[str, Any]) -> str:
    service = next(image for image in report["images"] if _short(image) == "cmcl-service")
    rows = [
        ["service, pull, MB", _mega(service["packed_bytes"]), f"under {_mega(SERVICE_BYTES)}"],
        ["files written outside volumes", str(len(report["trial"]["written_elsewhere"])), "0"],
    ]
    if "smoke" in report["trial"]:
        rows.append(["ranks that trained a dataset", str(report["trial"]["smoke"]["ranks"]), "2"])
    for image, other in zip(report["images"], report["again"], strict=False):
        what = f"layers of {_short(image)} that a second build made alike"
        rows.append([what, *_alike(image, other)])
    return table(("", "measured", "goal"), rows)


def _alike(image: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Table of results and goals."""
    pairs = zip_longest(_files(image), _files(other))
    same = sum(was == became for was, became in pairs)
    return [str(same), str(len(image["layers"]))]


def _sizes(images: Sequence[Mapping[str, Any]]) -> str:
    head = ("image", "pull", "on a node", "packages", "among them", "user")
    rows = [
        [
            _short(image),
            *(_mega(image["packed_bytes"]), _mega(image["unpacked_bytes"]), str(image["packages"])),
            ", ".join(f"{name} {version}" for name, version in image["versions"].items()),
            image["user"],
        ]
        for image in images
    ]
    return table(head, rows)


def _layers(image: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    """Table of layers, with those of a second build if there is one."""
    head = ["made by", "pull, MB", "files"]
    rows = [
        [_step(one["made_by"]), f"{one['packed_bytes'] / 1e6:.1f}", f"`{one['files'][7:19]}`"]
        for one in image["layers"]
    ]
    said = f"Built in {image['build_seconds']:.0f} s; configuration `{image['digest']}`"
    if other is not None:
        head.append("a second time")
        for row, was, became in zip_longest(rows, _files(image), _files(other)):
            row.append("the same" if was == became else f"`{became[7:19]}`")
        alike = "the same" if image["digest"] == other["digest"] else f"`{other['digest']}`"
        said += f". A second time, from nothing, in {other['build_seconds']:.0f} s: {alike}"
    return f"### Layers of {_short(image)}\n{table(head, rows)}\n\n{said}."


def _trial(found: Mapping[str, Any]) -> str:
    rows = [[text, str(found[name])] for name, text in _RESULTS.items() if name in found]
    smoke = found.get("smoke", {})
    rows += [[text, f"{smoke[name]:.4g}"] for name, text in _SMOKE.items() if name in smoke]
    elsewhere = ", ".join(found["written_elsewhere"])
    return table(("", "found"), [*rows, ["written outside volumes", elsewhere or "nothing"]])


def _files(image: Mapping[str, Any]) -> list[str]:
    return [layer["files"] for layer in image["layers"]]


def _short(image: Mapping[str, Any]) -> str:
    name: str = image["image"]
    return name.rpartition("/")[2].partition(":")[0]


def _step(text: str) -> str:
    """Return the step of the Dockerfile, without buildah's prefix and digests."""
    bare = re.sub(
        r"^(\|\d+ \S+ )?/bin/sh( -c)?( #\(nop\))?|\b(file|dir|multi):[0-9a-f]+ ", "", text
    )
    step = " ".join(bare.split()).replace("|", "\\|")
    return f"`{step}`" if step else "the base"


def _mega(count: float) -> str:
    return f"{count / 1e6:,.0f}"
