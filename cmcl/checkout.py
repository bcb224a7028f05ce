"""What `cmcl up`, `demo` and `admin` run, and the wheel does not hold: `service` and `workers`.

Other people's packages have these names too, so a file of ours is looked for; nothing is imported.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# A file of each that no other package has.
_FILES = {"service": Path("control/reconcile.py"), "workers": Path("train/job.py")}
_WHERE = (
    "run it from a checkout of cmcl (`make setup`, then `.venv/bin/cmcl`), or in an image "
    "(docs/deploying.md)"
)


class PartsMissing(Exception):
    """The message says what is missing, and where the command can run."""


def check_parts(command: str, *libraries: str) -> None:
    """Raises PartsMissing unless `python -m` would run our `service` and `workers` from here.

    `libraries`: modules that `command` needs beside them.
    """
    for name in _FILES:
        if not any(map(_is_ours, _folders_of(name))):
            raise PartsMissing(
                f"`{command}` runs the control plane and the workers, and only the client is "
                f"installed here: {_WHERE}"
            )
        # Python looks in the current folder first.
        here = Path.cwd() / name
        if (here / "__init__.py").is_file() and not _is_ours(here):
            raise PartsMissing(
                f"the package {here} would be run in place of ours of the same name: run "
                f"`{command}` in another folder"
            )
    missing = [library for library in libraries if find_spec(library) is None]
    if missing:
        raise PartsMissing(f"`{command}` needs {', '.join(missing)}, not installed here: {_WHERE}")


def _folders_of(name: str) -> Iterator[Path]:
    spec = find_spec(name)
    yield from map(Path, (spec and spec.submodule_search_locations) or ())


def _is_ours(folder: Path) -> bool:
    return (folder / _FILES[folder.name]).is_file()
