"""`cmcl up`, `demo`, `admin` and `encoder compare`: commands that run the control plane and the workers on this machine.

The wheel does not contain `service` and `workers`. Other packages may have these names, so their files
are checked, without importing them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console, Group

from cmcl.cli.console import Columns, show, stderr, stdout, table
from cmcl.cli.errors import CommandError
from cmcl.cli.options import AsJson
from cmcl.contract.encoder import (
    ComparedFeatures,
    EncoderComparison,
    EncoderSpec,
    parse_encoder,
)
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports, StackError

app = typer.Typer(
    no_args_is_help=True,
    help="Commands for operators, while no service runs.",
)
_ENCODERS = TypeAdapter(tuple[EncoderSpec, ...])
# A file that identifies each package.
_FILES = {
    "service": Path("jobs/reconciler.py"),
    "workers": Path("train/job.py"),
}
_WHERE = (
    "run it from a checkout of cmcl (`make setup`, then `.venv/bin/cmcl`), or in an image "
    "(docs/deploying.md)"
)
# Seen with `ss -ltnp` on a running stack; Ray has no setting for the addresses of these ports.
_LISTENING = (
    "The control plane, the endpoint and the dashboard listen on 127.0.0.1. Ray's own ports listen on "
    "all interfaces and require a token of this run. Ray's metrics listen on all interfaces without "
    "authentication; they contain names and counts, no data. So do torch's TCPStore and gloo while a "
    "dataset is trained on several ranks: who reaches them can disturb the training. Use a firewall on an "
    "untrusted network."
)


def up(  # noqa: PLR0913, PLR0917 - each part has its options
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
            help="encoder that models can bind a modality to: NAME=KIND:TAKES:WIDTH[:MODEL], e.g. "
            "words=synthetic:text:384, or its declaration as JSON; repeatable"
        ),
    ] = None,
    encoders: Annotated[
        Path | None,
        typer.Option(
            help="file with a JSON list of encoders (docs/settings.md, An encoder); kinds module:Class are "
            "imported from its folder",
            dir_okay=False,
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
    declared = (*_parse_encoders(encoder or []), *(_read_encoders(encoders) if encoders else ()))
    _check_names(declared)
    prefixes = tuple(allow) if allow else (Path.cwd().as_uri(),)
    ports = Ports.free(port, embeddings_port)
    stack = LocalStack(
        folder,
        ports,
        ranks,
        prefixes,
        encoders=declared,
        keys=keys,
        plugins=encoders and encoders.parent,
        report=lambda line: stderr().print(line, markup=False, highlight=False),
    )
    _interrupt_on_signals()
    stderr().print("Ctrl-C stops the system")
    with stack:
        with suppress(KeyboardInterrupt):
            _print_addresses(stack, as_json)
            while True:
                time.sleep(1.0)
                for name in stack.ended():
                    raise StackError(stack.last_words(name, "ended"))
        stderr().print("stopping ...")


def demo(  # noqa: PLR0913, PLR0917 - each part has its options
    stream: Annotated[Path, typer.Option(help="folder with stream.json")] = Path("examples/stream"),
    raw: Annotated[Path, typer.Option(help="folder with raw pairs")] = Path("examples/raw"),
    encoders: Annotated[
        Path, typer.Option(help="file with a JSON list of the encoders of the raw pairs")
    ] = Path("examples/encoders/encoders.json"),
    folder: Annotated[Path, typer.Option(help="folder for all files; emptied first")] = Path(
        ".cmcl/demo"
    ),
    ranks: Annotated[int, typer.Option(min=1, help="processes that train a dataset")] = 2,
    queries_per_second: Annotated[
        float, typer.Option(min=1, help="embedding queries per second during training")
    ] = 200.0,
    as_json: AsJson = False,
) -> None:
    """Train a small real stream under both policies and without protection, while sending queries.

    The last line on stdout is one JSON document; with --json, it is the only one.
    """
    _check_parts("cmcl demo", "alembic", "pyarrow", "ray")
    # Imported here, because only this command needs pyarrow.
    from cmcl.demo.raw import MODALITIES
    from cmcl.demo.run import DemoError, DemoOptions, run_demo

    _interrupt_on_signals()
    declared = tuple(each for each in _read_encoders(encoders) if each.name in MODALITIES.values())
    options = DemoOptions(stream, raw, folder, ranks, queries_per_second, declared, encoders.parent)
    console = Console(stderr=True) if as_json else Console()
    try:
        code = run_demo(options, console)
    except (DemoError, FileNotFoundError) as error:
        raise CommandError(str(error)) from error
    raise typer.Exit(code)


def _interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt at the first signal that ends this process, so that what was started is stopped.

    Its processes are in sessions of their own, and would outlive a closed terminal. Later signals are ignored: they
    would end the process before everything is stopped.
    """
    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # As nohup has it.
        ending.append(signal.SIGHUP)

    def interrupt(*_: object) -> None:
        for each in ending:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in ending:
        signal.signal(each, interrupt)


def _parse_encoders(texts: list[str]) -> list[EncoderSpec]:
    """The encoders of `--encoder`. Raises BadParameter."""
    try:
        return [parse_encoder(text) for text in texts]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--encoder") from error


def _read_encoders(path: Path) -> tuple[EncoderSpec, ...]:
    """The encoders of a file. Raises BadParameter."""
    try:
        return _ENCODERS.validate_json(path.read_bytes())
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="--encoders") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        message = f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}"
        raise typer.BadParameter(message, param_hint="--encoders") from error


def _check_names(encoders: Sequence[EncoderSpec]) -> None:
    """Raises BadParameter."""
    names = [encoder.name for encoder in encoders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise typer.BadParameter(
            f"encoder {twice[0]!r} is declared twice; names must differ",
            param_hint="--encoder, --encoders",
        )


def _print_addresses(stack: LocalStack, as_json: bool) -> None:
    addresses = {
        "page": stack.page_url,
        "control plane": f"{stack.service_url}/docs",
        "embeddings": f"{stack.embeddings_url}/v1/embeddings",
        "Ray dashboard": stack.dashboard_url,
        "store": stack.store_uri,
        "datasets from": ", ".join(stack.allowed_prefixes),
    }
    if as_json:
        urls = {"service_url": stack.service_url, "embeddings_url": stack.embeddings_url}
        more = {
            "page_url": stack.page_url,
            "dashboard_url": stack.dashboard_url,
            "store_uri": stack.store_uri,
        }
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
    as_json: AsJson = False,
) -> None:
    """Restore a lost database from object storage. Stop every service first.

    Exit code 3 means that damaged objects were found and everything else was restored.
    """
    options = {"--dry-run": dry_run, "--json": as_json}
    given = [option for option, is_given in options.items() if is_given]
    places = {"CMCL_DATABASE_URL": database_url, "CMCL_STORE_URI": store and _uri(store)}
    environment = {name: value for name, value in places.items() if value is not None}
    code = _run_service(["admin", "rebuild", "--verify", verify, *given], environment)
    raise typer.Exit(code)


_COMPARED: Columns[ComparedFeatures] = {
    "features": lambda each: each.name,
    "widths": lambda each: "{} + {}".format(*each.widths),
    "agreement": lambda each: f"{each.agreement:.2f} ± {each.agreement_std:.2f}",
    "directions": lambda each: each.directions or "over 128",
    "behind": lambda each: f"{each.behind:.2f} ± {each.behind_error:.2f}" if each.behind else None,
}


def compare_encoders(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES",
            help="Parquet files of features of the same pairs, one for each encoder: id, feature_a, feature_b",
            exists=True,
            dir_okay=False,
        ),
    ],
    *,
    concatenated: Annotated[
        bool, typer.Option("--concatenated", help="compare also all features side by side")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare encoders by how far two halves of the pairs agree. Needs no labels, model or service."""
    _check_parts("cmcl encoder compare", "pyarrow", "torch")
    command = [sys.executable, "-m", "workers.compare_encoders", *map(str, files)]
    done = subprocess.run(
        [*command, *(["--concatenated"] if concatenated else [])],
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise typer.Exit(done.returncode)
    found = EncoderComparison.model_validate_json(done.stdout)
    show(found, as_json, lambda each: Group(table(each.features, _COMPARED), each.verdict))


def _uri(store: str) -> str:
    """Return a folder as a file:// URI, and a URI unchanged."""
    return store if "://" in store else Path(store).resolve().as_uri()


def _run_service(arguments: list[str], environment: dict[str, str]) -> int:
    """Run a command of the service in a subprocess and return its exit code."""
    _check_parts("cmcl admin", "alembic")
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode


def _check_parts(command: str, *libraries: str) -> None:
    """Raise CommandError unless `python -m` would run cmcl's own packages from here.

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
