"""Strict schemas of Kubernetes and KubeRay: an unknown field is an error."""

import functools
import lzma
import os
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate  # type: ignore[import-untyped]
from jsonschema import Draft7Validator

from tests.chart.release import ROOT, Object

# Data of ray-project/kuberay, which is not part of this repository: beside it on the developers' machines,
# or in the folder that CMCL_TEST_CRDS names.
CRDS = Path(os.environ.get("CMCL_TEST_CRDS", ROOT.parent / "shared" / "crds"))
_INT_OR_STRING = {"anyOf": [{"type": "integer"}, {"type": "string"}]}


def complaints_of_kubernetes(item: Object) -> list[str]:
    """Reasons why Kubernetes would reject a built-in object, or ignore a field of it."""
    try:
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error)]
    return []


def complaints_of_kuberay(item: Object) -> list[str]:
    """Fields of an object that KubeRay's CRDs do not describe."""
    validator = _crd_validator(CRDS / f"{item['kind'].lower()}s.yaml.xz")
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(item)]


@functools.cache
def _crd_validator(path: Path) -> Draft7Validator:
    with lzma.open(path, "rt") as file:
        crd = helm_python.values_from_yaml(file.read())
    (version,) = (entry for entry in crd["spec"]["versions"] if entry["name"] == "v1")
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft7Validator(schema)


def _strict(schema: Any) -> Any:
    """The JSON Schema of a structural OpenAPI schema."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return _INT_OR_STRING
    result = {key: _strict(part) for key, part in schema.items() if not key.startswith("x-")}
    closed = "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields")
    if closed and schema.get("type") == "object":
        result["additionalProperties"] = False
    return result
