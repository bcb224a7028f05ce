"""`cmcl up` and `cmcl demo`: the whole system on this machine."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cmcl.checkout import check_parts
from cmcl.ports import Ports, StackError
from cmcl.stack import LocalStack
from cmcl.terminal.console import stderr, stdout
from cmcl.terminal.exits import Refused
from cmcl.terminal.options import AsJson

# Seen with `ss -ltnp` on a running stack; Ray has no setting for the addresses of these ports.
_LISTENING = (
    "Control plane, endpoint and dashboard listen on 127.0.0.1. On all interfaces listen Ray's own "
    "ports, which ask for a token of this run, and its metrics, which ask for nothing: names and "
    "counts, no data. On a network that you do not trust, use a firewall."
)


def up(  # noqa: PLR0913 - each part has its options
    folder: Annotated[Path, typer.Option(help="of database, store and logs")] = Path(".cmcl/up"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the control plane")] = 8000,
    embeddings_port: Annotated[
        int, typer.Option(min=1, max=65535, help="of the query endpoint")
    ] = 8001,
    ranks: Annotated[int, typer.Option(min=1, help="processes that train a dataset")] = 2,
    allow: Annotated[
        list[str] | None, typer.Option(help="URI prefix that datasets may come from; repeatable")
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="takes raw items: MODALITY=KIND:WIDTH[:MODEL], e.g. text=synthetic:384; repeatable"
        ),
    ] = None,
    *,
    keys: Annotated[
        bool, typer.Option("--keys", help="both endpoints ask for keys; prints the operator's key")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole system on this machine until Ctrl-C."""
    check_parts("cmcl up", "alembic", "ray")
    _check_encoders(encoder or [])
    prefixes = tuple(allow) if allow else (Path.cwd().as_uri(),)
    ports = Ports.free(port, embeddings_port)
    stack = LocalStack(folder, ports, ranks, prefixes, encoders=tuple(encoder or ()), keys=keys)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    stderr().print("starting (Ctrl-C stops) ...")
    with stack:
        _tell_addresses(stack, as_json)
        while not stopped.wait(1.0):
            for name in stack.ended():
                raise StackError(stack.last_words(name, "ended"))
        stderr().print("stopping ...")


def demo(
    stream: Annotated[Path, typer.Option(help="folder with stream.json")] = Path("examples/stream"),
    folder: Annotated[Path, typer.Option(help="emptied first")] = Path(".cmcl/demo"),
    ranks: Annotated[int, typer.Option(min=1, help="processes that train a dataset")] = 2,
    queries_per_second: Annotated[float, typer.Option(min=1, help="asked all the while")] = 200.0,
    as_json: AsJson = False,
) -> None:
    """Learn a small real stream end to end, with and without protection, under queries.

    The last line on stdout is one JSON document; with --json, it is the only one.
    """
    check_parts("cmcl demo", "alembic", "matplotlib", "pyarrow", "ray")
    # Here, because matplotlib is an extra that the other commands do without.
    from cmcl.demo.run import DemoError, DemoOptions, run_demo

    options = DemoOptions(stream, folder, ranks, queries_per_second)
    console = Console(stderr=True) if as_json else Console()
    try:
        code = run_demo(options, console)
    except (DemoError, FileNotFoundError) as error:
        raise Refused(str(error)) from error
    raise typer.Exit(code)


def _check_encoders(encoders: list[str]) -> None:
    """Raises BadParameter, before anything is started. The client knows no kinds of encoders."""
    if not encoders:
        return
    command = [sys.executable, "-m", "workers.serve.encoders.spec", *encoders]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    if checked.returncode:
        words = checked.stderr.strip().splitlines() or ["it cannot be read"]
        raise typer.BadParameter(words[-1], param_hint="--encoder")


def _tell_addresses(stack: LocalStack, as_json: bool) -> None:
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
            f"\nThe operator's key, for the first steps:  export CMCL_KEY={stack.operator_key}\n"
            "A key for an owner:  cmcl key create NAME --owner OWNER --scope read --scope write "
            "--scope train --scope embed",
            soft_wrap=True,
        )
    stderr().print(_LISTENING, soft_wrap=True, highlight=False)
