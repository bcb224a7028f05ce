"""The rendered chart, which the tests of this folder read."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
RELEASE_NAME = "demo"
# A store that pods on several nodes reach.
BUCKET = {"store": {"uri": "s3://bucket/store"}}
# One that needs nothing but KubeRay, which chart-testing installs (its files are ci/*-values.yaml), and
# those that need Secrets, kinds or nodes of a site.
_SETS = {
    path.stem.removesuffix("-values"): path
    for pattern in ("ci/*-values.yaml", "examples/*.yaml")
    for path in CHART.glob(pattern)
}
EXAMPLES = tuple(sorted(_SETS))
# Those where one Ray cluster trains and another one serves.
TWO_CLUSTERS = ("trial", "production", "gpu", "locked-down", "openshift")
_SEPARATOR = re.compile(r"^---$", re.MULTILINE)

# Objects of Kubernetes are known to their schemas only, not to a type checker.
Object = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """Manifests that `helm install` would send, by file of the chart."""

    objects: Mapping[str, Object]
    notes: str

    def one(self, kind: str, name: str) -> Object:
        """The only object of this kind and name."""
        found = [
            item
            for item in self.objects.values()
            if (item["kind"], item["metadata"]["name"]) == (kind, name)
        ]
        assert len(found) == 1, f"{len(found)} objects are a {kind} named {name}"
        return found[0]

    def of_kind(self, *kinds: str) -> list[Object]:
        """All objects of these kinds."""
        return [item for item in self.objects.values() if item["kind"] in kinds]

    def pod_templates(self, *, at_the_end: bool = True) -> dict[str, Object]:
        """Every pod template, including those inside Ray objects, by its location.

        Without `at_the_end`: only those that exist while the release is installed.
        """
        return {
            f"{item['kind']} {item['metadata']['name']} {where}": template
            for item in self.objects.values()
            if at_the_end or not is_uninstall_hook(item)
            for where, template in _pod_templates(item)
        }

    def settings(self) -> dict[str, Any]:
        """CMCL_* variables of the control plane: text, or their source."""
        container = self.container("service")
        (source,) = container["envFrom"]
        settings: dict[str, Any] = dict(
            self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        )
        settings |= {
            variable["name"]: variable.get("value", variable.get("valueFrom"))
            for variable in container["env"]
            if variable["name"].startswith("CMCL_")
        }
        return settings

    def serve_args(self) -> dict[str, Any]:
        """Arguments of the Serve application."""
        (item,) = self.of_kind("RayService")
        config = helm_python.values_from_yaml(item["spec"]["serveConfigV2"])
        (application,) = config["applications"]
        args: dict[str, Any] = application["args"]
        return args

    def groups(self) -> dict[str, Object]:
        """Worker groups of all Ray clusters, by name."""
        clusters = [item["spec"] for item in self.of_kind("RayCluster")]
        clusters += [item["spec"]["rayClusterConfig"] for item in self.of_kind("RayService")]
        return {
            group["groupName"]: group
            for cluster in clusters
            for group in cluster["workerGroupSpecs"]
        }

    def container(self, component: str) -> Object:
        """The container of the first pod template that belongs to a component."""
        for template in self.pod_templates().values():
            if template["metadata"]["labels"]["app.kubernetes.io/component"] == component:
                container: Object = template["spec"]["containers"][0]
                return container
        raise AssertionError(f"no pod belongs to {component}")


def render(values: Mapping[str, Any], name: str = RELEASE_NAME, namespace: str = "test") -> Release:
    """Render the chart with these values."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(dict(values), name=name, namespace=namespace)
    parsed = {
        f"{path.removeprefix('cmcl/templates/')} {number}": helm_python.values_from_yaml(text)
        for path, written in files.items()
        if path.endswith(".yaml")
        for number, text in enumerate(_SEPARATOR.split(written))
    }
    return Release(
        objects={path: item for path, item in parsed.items() if item},
        notes=files["cmcl/templates/NOTES.txt"],
    )


def each_release(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make one test of an invariant: the `release` of each of these sets of values, or of all."""

    def over(invariant: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(invariant)
        def test(releases: Mapping[str, Release], **fixtures: Any) -> None:
            for example in examples or EXAMPLES:
                try:
                    invariant(release=releases[example], **fixtures)
                except Exception as error:
                    error.add_note(f"with the values of {example}")
                    raise

        signature = inspect.signature(invariant)
        fixtures = [each for each in signature.parameters.values() if each.name != "release"]
        releases = inspect.Parameter("releases", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        # What pytest looks at to find fixtures.
        test.__signature__ = signature.replace(parameters=[releases, *fixtures])  # type: ignore[attr-defined]
        return test

    return over


def merged(values: Mapping[str, Any]) -> dict[str, Any]:
    """These values over the chart's defaults."""
    with helm_python.Chart.load(CHART) as chart:
        return chart.merge_values(dict(values))


def is_uninstall_hook(item: Object) -> bool:
    """Whether Helm creates it only during an uninstall."""
    return item["metadata"].get("annotations", {}).get("helm.sh/hook") == "pre-delete"


def environment_of(container: Object) -> dict[str, Any]:
    """Variables of a container: text, or their source."""
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def values_of(example: str) -> dict[str, Any]:
    """The values of one set."""
    return helm_python.values_from_yaml(path_of(example).read_text())


def path_of(example: str) -> Path:
    """The file of one set of values."""
    return _SETS[example]


def _pod_templates(node: Any, where: str = "") -> Iterator[tuple[str, Object]]:
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            yield where.strip("/"), node
            return
        for key, child in node.items():
            yield from _pod_templates(child, f"{where}/{key}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _pod_templates(child, f"{where}/{index}")
