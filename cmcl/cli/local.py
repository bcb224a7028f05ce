"""`cmcl up`, `demo` and `admin`: commands that run the control plane and the workers on this machine.

The wheel does not contain `service` and `workers`. Other packages may have these names, so their files
are checked, without importing them.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from cmcl.cli.console import stderr, stdout
from cmcl.cli.errors import CommandError
from cmcl.cli.options import AsJson
from cmcl.ports import Ports, StackError
from cmcl.stack import LocalStack

app = typer.Typer(
    no_args_is_help=True,
    help="Commands for operators, while no service runs.",
)
# A file that identifies each package.
_FILES = {"service": Path("jobs/reconciler.py"), "workers": Path("train/job.py")}
_WHERE = (
    "run it from a checkout of cmcl (`make setup`, then `.venv/bin/cmcl`), or in an image "
    "(docs/deploying.md)"
)
# Seen with `ss -ltnp` on a running stack; Ray has no setting for the addresses of these ports.
_LISTENING = (
    "The control plane, the endpoint and the dashboard listen on 127.0.0.1. Ray's own ports listen on "
    "all interfaces and require a token of this run. Ray's metrics listen on all interfaces without "
    "authentication; they contain names and counts, no data. Use a firewall on an untrusted network."
)


def up(  # noqa: PLR0913 - each part has its options
    folder: Annotated[Path, typer.Option(help="folder for database, store and logs")] = Path(
        ".cmcl/up"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the control plane")] = 8000,
    embeddings_port: Annotated[
        int, typer.Option(min=1, max=65535, help="port of the embeddings endpoint")
    ] = 8001,
    ranks: Annotated[int, typer.Option(min=1, help="processes that train a dataset")] = 2,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="URI prefix from which datasets may be read; repeatable"),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="encoder, MODALITY=KIND:WIDTH[:MODEL], e.g. text=synthetic:384; repeatable"
        ),
    ] = None,
    *,
    keys: Annotated[
        bool, typer.Option("--keys", help="require keys at both servers; prints the operator's key")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole system on this machine until Ctrl-C."""
    _check_parts("cmcl up", "alembic", "ray")
    _check_encoders(encoder or [])
    prefixes = tuple(allow) if allow else (Path.cwd().as_uri(),)
    ports = Ports.free(port, embeddings_port)
    stack = LocalStack(folder, ports, ranks, prefixes, encoders=tuple(encoder or ()), keys=keys)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    stderr().print("starting (Ctrl-C stops) ...")
    with stack:
        _print_addresses(stack, as_json)
        while not stopped.wait(1.0):
            for name in stack.ended():
                raise StackError(stack.last_words(name, "ended"))
        stderr().print("stopping ...")


def demo(
    stream: Annotated[Path, typer.Option(help="folder with stream.json")] = Path("examples/stream"),
    folder: Annotated[Path, typer.Option(help="folder for all files; emptied first")] = Path(
        ".cmcl/demo"
    ),
    ranks: Annotated[int, typer.Option(min=1, help="processes that train a dataset")] = 2,
    queries_per_second: Annotated[
        float, typer.Option(min=1, help="embedding queries per second during training")
    ] = 200.0,
    as_json: AsJson = False,
) -> None:
    """Train a small real stream with and without protection, while sending queries.

    The last line on stdout is one JSON document; with --json, it is the only one.
    """
    _check_parts("cmcl demo", "alembic", "matplotlib", "pyarrow", "ray")
    # Imported here, because only this command needs matplotlib.
    from cmcl.demo.run import DemoError, DemoOptions, run_demo

    options = DemoOptions(stream, folder, ranks, queries_per_second)
    console = Console(stderr=True) if as_json else Console()
    try:
        code = run_demo(options, console)
    except (DemoError, FileNotFoundError) as error:
        raise CommandError(str(error)) from error
    raise typer.Exit(code)


def _check_encoders(encoders: list[str]) -> None:
    """Check encoder options in a subprocess, because workers define the kinds. Raises BadParameter."""
    if not encoders:
        return
    command = [sys.executable, "-m", "workers.serve.encoders.spec", *encoders]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    if checked.returncode:
        lines = checked.stderr.strip().splitlines() or ["cannot be parsed"]
        raise typer.BadParameter(lines[-1], param_hint="--encoder")


def _print_addresses(stack: LocalStack, as_json: bool) -> None:
    addresses = {
        "control plane": f"{stack.service_url}/docs",
        "embeddings": f"{stack.embeddings_url}/v1/embeddings",
        "Ray dashboard": stack.dashboard_url,
        "store": stack.store_uri,
        "datasets from": ", ".join(stack.allowed_prefixes),
    }
    if as_json:
        urls = {"service_url": stack.service_url, "embeddings_url": stack.embeddings_url}
        more = {"dashboard_url": stack.dashboard_url, "store_uri": stack.store_uri}
        key = {"operator_key": stack.operator_key} if stack.keys else {}
        print(json.dumps({**urls, **more, **key}), flush=True)
        return
    for name, address in addresses.items():
        stdout().print(f"{name:<14} {address}", soft_wrap=True)
    if stack.operator_key:
        stdout().print(
            f"\nThe operator's key:  export CMCL_KEY={stack.operator_key}\n"
            "A key for an owner:  cmcl key create NAME --owner OWNER --scope read --scope write "
            "--scope train --scope embed",
            soft_wrap=True,
        )
    stderr().print(_LISTENING, soft_wrap=True, highlight=False)


@app.command()
def rebuild(
    database_url: Annotated[
        str | None,
        typer.Option(envvar="CMCL_DATABASE_URL", help="the new, empty database", show_envvar=True),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            envvar="CMCL_STORE_URI",
            help="root of object storage: s3://..., file://..., or a folder",
        ),
    ] = None,
    verify: Annotated[
        Literal["full", "manifests"],
        typer.Option(help="full: read every byte; manifests: check only that files exist"),
    ] = "full",
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="report only, change nothing")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="restore damaged versions from an intact copy")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore a lost database from object storage. Stop every service first.

    Exit code 3 means that damaged objects were found and everything else was restored.
    """
    options = {"--dry-run": dry_run, "--repair": repair, "--json": as_json}
    given = [option for option, is_given in options.items() if is_given]
    places = {"CMCL_DATABASE_URL": database_url, "CMCL_STORE_URI": store and _uri(store)}
    environment = {name: value for name, value in places.items() if value is not None}
    code = _run_service(["admin", "rebuild", "--verify", verify, *given], environment)
    raise typer.Exit(code)


def _uri(store: str) -> str:
    """Return a folder as a file:// URI, and a URI unchanged."""
    return store if "://" in store else Path(store).resolve().as_uri()


def _run_service(arguments: list[str], environment: dict[str, str]) -> int:
    """Run a command of the service in a subprocess and return its exit code."""
    _check_parts("cmcl admin", "alembic")
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode


def _check_parts(command: str, *libraries: str) -> None:
    """Raise CommandError unless `python -m` would run cmcl's `service` and `workers` from here.

    libraries: further modules that `command` needs.
    """
    for name in _FILES:
        if not any(map(_is_ours, _folders_of(name))):
            raise CommandError(
                f"`{command}` needs the control plane and the workers, but only the client is "
                f"installed here: {_WHERE}"
            )
        # Python looks in the current folder first.
        here = Path.cwd() / name
        if (here / "__init__.py").is_file() and not _is_ours(here):
            raise CommandError(
                f"the package {here} would run instead of cmcl's package of the same name: run "
                f"`{command}` in another folder"
            )
    missing = [library for library in libraries if find_spec(library) is None]
    if missing:
        raise CommandError(
            f"`{command}` needs {', '.join(missing)}, which is not installed: {_WHERE}"
        )


def _folders_of(name: str) -> Iterator[Path]:
    spec = find_spec(name)
    yield from map(Path, (spec and spec.submodule_search_locations) or ())


def _is_ours(folder: Path) -> bool:
    return (folder / _FILES[folder.name]).is_file()
