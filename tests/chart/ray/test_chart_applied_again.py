"""KubeRay's update of a RayService equals what Helm applied, so Helm can apply again.

KubeRay adds its finalizer by an update of the whole object. Were a list changed on its way through Go's
types, KubeRay would own it, and the next `helm upgrade`, which applies on the server's side, would be a
conflict.
"""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import helm_python
import pytest

from tests.chart.release import Object, Release, each_release, render, values_of

RAY = ("RayService", "RayCluster")
QUANTITIES = {"requests", "limits"}
# Fields without a pointer that are neither a text nor a list.
_OMITTED_IF_EMPTY = {"readOnly", "matchLabels", "labels", "annotations", "volumeAttributes"}
_UNITS = {
    1000: ("m", "", "k", "M", "G", "T", "P", "E"),
    1024: ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"),
}


def _quantity(value: Any) -> str:
    """As `resource.Quantity` marshals: whole, in the largest unit, a string."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value))
    assert found is not None
    base = 1024 if found[2].endswith("i") else 1000
    units = _UNITS[base]
    amount = Decimal(found[1]) * base ** units.index(found[2])
    assert amount == int(amount), value
    unit = 0
    while amount and not amount % base and unit + 1 < len(units):
        amount, unit = amount // base, unit + 1
    return f"{int(amount)}{units[unit] if amount else ''}"


def _is_omitted(key: str, part: Any) -> bool:
    if key == "storageClassName":
        # A pointer, unlike the others.
        return False
    return part in ("", []) or (key in _OMITTED_IF_EMPTY and not part)


def _written_back(node: Any) -> Any:
    """A part of a Ray object after KubeRay's update, for the parts that the chart uses."""
    if isinstance(node, list):
        return [_written_back(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    written = {
        key: {name: _quantity(amount) for name, amount in part.items()}
        if key in QUANTITIES
        else _quantity(part)
        if key == "sizeLimit"
        else _written_back(part)
        for key, part in node.items()
        if not _is_omitted(key, part)
    }
    if "groupName" in node:
        # No pointer, so that Go writes it even where it is empty.
        written.setdefault("scaleStrategy", {})
    if "accessModes" in node.get("spec", {}):
        # Likewise in a claim's template.
        written = {"metadata": {}} | written
        written["spec"] = {"resources": {}} | written["spec"]
    if "resourceFieldRef" in node:
        written["resourceFieldRef"] = {"divisor": "0"} | node["resourceFieldRef"]
    return written


def _ray_objects(release: Release) -> dict[str, Object]:
    return {item["metadata"]["name"]: item["spec"] for item in release.of_kind(*RAY)}


@each_release()
def test_kuberay_changes_nothing_that_helm_applied(release: Release) -> None:
    applied = _ray_objects(release)
    assert applied
    assert {name: _written_back(spec) for name, spec in applied.items()} == applied


def test_kuberay_changes_nothing_of_what_users_write() -> None:
    values = values_of("gpu")
    values["training"]["autoscaling"]["resources"] = {"requests": {"cpu": "1000m"}}
    part = helm_python.values_from_yaml((Path(__file__).parent / "written.yaml").read_text())
    for name in ("training", "serving"):
        values[name] = {**values[name], **part} if name in values else part
    applied = _ray_objects(render(values))
    assert {name: _written_back(spec) for name, spec in applied.items()} == applied
    (container,) = applied["demo-cmcl-serving"]["rayClusterConfig"]["headGroupSpec"]["template"][
        "spec"
    ]["containers"]
    assert container["resources"]["requests"] == {"cpu": "500m", "memory": "2Gi"}
    assert {"name": "EMPTY"} in container["env"]
    pod = applied["demo-cmcl-serving"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"][
        "spec"
    ]
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["namespaceSelector"] == {}, "which is every namespace"
    claims = [volume["ephemeral"] for volume in pod["volumes"] if "ephemeral" in volume]
    assert claims[0]["volumeClaimTemplate"]["spec"]["storageClassName"] == ""


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("2048Mi", "2Gi"),
        ("1536Mi", "1536Mi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("2000", "2k"),
        (0.5, "500m"),
        (2, "2"),
        (1000000, "1M"),
        (6442450944, "6442450944"),
        ("0Gi", "0"),
    ],
)
def test_a_quantity_becomes_what_go_would_write(written: Any, canonical: str) -> None:
    release = render({"serving": {"workers": {"resources": {"limits": {"memory": written}}}}})
    (container,) = release.groups()["replicas"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == canonical == _quantity(written)
