"""Check that this tree can be released under a tag, and extract the release notes.

`python -m deploy.release check v1.2.3` runs in the release workflow; `notes v1.2.3` prints the section of
the changelog. pyproject.toml defines the version; all other places must have the same.
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CHARTS = ("helm", "deploy/with-operator")
# Patterns whose first group is the version: image tags outside the charts.
NAMED = {
    "deploy/compose.yaml": r"\$\{CMCL_VERSION:-([^}]*)\}",
    "docs/deploying.md": r"--build-arg VERSION=(\S+)|REGISTRY/cmcl-\w+:(\S+)",
}


class NotReleasable(Exception):
    """The tree cannot be released. The message has one reason per line."""


def version(root: Path = ROOT) -> str:
    """Return the version of pyproject.toml."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def notes(tag: str, root: Path = ROOT) -> str:
    """Return the changelog's section of a version. Raises NotReleasable."""
    text = (root / "CHANGELOG.md").read_text()
    heading = rf"^## \[{re.escape(tag.removeprefix('v'))}\] - \d{{4}}-\d\d-\d\d$"
    found = re.search(rf"{heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise NotReleasable(
            f"CHANGELOG.md has no section '## [{tag.removeprefix('v')}] - YYYY-MM-DD' with entries"
        )
    return found[1].strip()


def check(tag: str, root: Path = ROOT) -> None:
    """Check the tree. Raises NotReleasable."""
    if complaints := [*_complaints(tag, root)]:
        raise NotReleasable("\n".join(complaints))


def different_versions(root: Path = ROOT) -> Iterator[str]:
    """Yield one line per place whose version differs from pyproject.toml."""
    own = version(root)
    for chart in CHARTS:
        path = Path(chart) / "Chart.yaml"
        document = yaml.safe_load((root / path).read_text())
        said = {field: document.get(field, own) for field in ("version", "appVersion")}
        for dependency in document.get("dependencies", []):
            if dependency["repository"].startswith("file://"):
                said[f"dependency {dependency['name']}"] = dependency["version"]
        for field, value in said.items():
            if value != own:
                yield f"{path} has the {field} {value}; pyproject.toml has {own}"
    for name, pattern in NAMED.items():
        found = {"".join(groups) for groups in _groups(pattern, (root / name).read_text())}
        for value in sorted((found or {"none"}) - {own}):
            yield f"{name} has the tag {value}; pyproject.toml has {own}"


def _groups(pattern: str, text: str) -> Iterator[tuple[str, ...]]:
    for match in re.finditer(pattern, text):
        yield match.groups("")


def _complaints(tag: str, root: Path) -> Iterator[str]:
    if tag != f"v{version(root)}":
        yield f"the tag is {tag}; pyproject.toml requires v{version(root)}"
    yield from different_versions(root)
    try:
        notes(tag, root)
    except NotReleasable as error:
        yield str(error)


def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit status."""
    commands = {"check": check, "notes": lambda tag: print(notes(tag))}
    if len(arguments) != 2 or arguments[0] not in commands:
        print(f"usage: python -m deploy.release {'|'.join(commands)} TAG", file=sys.stderr)
        return 2
    try:
        commands[arguments[0]](arguments[1])
    except NotReleasable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
