"""The pods of a RayJob: ours are bare, and a site lays over them what its cluster asks for.

A site's file is YAML with pod templates `head` and `workers`, and `submitter` for the mode in which a pod
of its own hands the command to Ray; that one is taken as it is. Maps are merged. So are lists whose
entries have names (containers, env, volumes), entry by entry; every other list replaces ours.
The container with Ray in it is named `ray`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RAY_CONTAINER = "ray"
_GROUPS = ("head", "workers", "submitter")
_NAMES = "head, workers and submitter"

Tree = dict[str, Any]


@dataclass(frozen=True)
class PodTemplates:
    """What a site lays over the pods of the head and of the workers, and its submitter's pod."""

    head: Mapping[str, Any] = field(default_factory=dict)
    workers: Mapping[str, Any] = field(default_factory=dict)
    submitter: Mapping[str, Any] = field(default_factory=dict)


def read_pod_templates(path: Path | None) -> PodTemplates:
    """The site's file; nothing without one. Raises ValueError, in words."""
    if path is None:
        return PodTemplates()
    # Only those who have such a file need it.
    import yaml

    try:
        read = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    return PodTemplates(**_checked(path, {} if read is None else read))


def pod_template(image: str, service_account: str, limits: Tree, site: Mapping[str, Any]) -> Tree:
    """A pod template of the RayJob; `limits` are what the ranks in it ask for."""
    container: Tree = {"name": RAY_CONTAINER, "image": image}
    if limits:
        container["resources"] = {"limits": limits}
    spec = {"serviceAccountName": service_account, "containers": [container]}
    merged: Tree = _merged({"spec": spec}, site)
    return merged


def _checked(path: Path, read: Any) -> Tree:
    if not isinstance(read, dict):
        raise ValueError(f"{path} must be a map with {_NAMES}")  # noqa: TRY004
    for name, template in read.items():
        if name not in _GROUPS:
            raise ValueError(f"{path} has {name!r}; permitted are {_NAMES}")
        if not isinstance(template, dict) or not set(template) <= {"metadata", "spec"}:
            raise ValueError(f"{path}: {name} is no pod template: a map of metadata and spec")
    return read


def _merged(ours: Any, site: Any) -> Any:
    if isinstance(ours, Mapping) and isinstance(site, Mapping):
        changed = {key: _merged(ours[key], site[key]) for key in ours if key in site}
        return {**ours, **site, **changed}
    if isinstance(ours, list) and isinstance(site, list) and _have_names([*ours, *site]):
        named = _merged(_by_name(ours), _by_name(site))
        return list(named.values())
    return site


def _have_names(entries: list[Any]) -> bool:
    return all(isinstance(entry, Mapping) and "name" in entry for entry in entries)


def _by_name(entries: list[Any]) -> Tree:
    return {entry["name"]: entry for entry in entries}
