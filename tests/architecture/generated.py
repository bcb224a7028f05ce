"""Documents and code generated from the code: `python -m tests.architecture.generated` writes them."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cmcl.cli import command_tree
from cmcl.contract.encoder import EncoderSpec
from cmcl.pictures import Memory, MemoryRow, forgetting_matrices
from cmcl.storage.local import LocalStore
from service.app import create_app
from service.core.settings import OwnerGrant, Settings
from tests.architecture.repository import ROOT
from tests.architecture.sync_client import SYNC_MODULES
from tests.chart.readme import chart_readme
from tests.fakes.flaky_store import FlakyStore
from tests.unit.serve.conftest import Replica
from workers.prepare.cluster import PrepareSettings
from workers.serve.api.app import describe
from workers.serve.settings import ServeArgs, ServeSettings
from workers.train.settings import TrainSettings

Schema = dict[str, Any]

_CLI_HEAD = (
    "Generated from the code by `make docs`; edit the help there. "
    "[Client and command line](client.md) explains how they are used, and has the exit codes."
)
_HEAD = """# Settings

Generated from the code by `make docs`; edit the descriptions there.

## Control plane

`python -m service` reads the environment, once, when it starts (`service/core/settings.py`).

{service}
### A grant

Of the operator to one owner, in `CMCL_OWNERS`. A number of 0 permits none.

{grant}
## Training

Read by the training processes from the environment of the Ray nodes (`workers/train/settings.py`).

{train}
## Preparation

Read by the driver and by its tasks, from the environment of the Ray nodes
(`workers/prepare/cluster.py`).

{prepare}
## The service's proxy

Read by `python -m cmcl.service_proxy` from the environment, once, when it starts (`cmcl/service_proxy.py`;
chart: `service.trustedProxies`).

| variable | default | permitted | meaning |
|---|---|---|---|
| `CMCL_PROXY_LISTEN` | required | text | address and port for clients: `127.0.0.1:8000`, or `:8000` for all interfaces |
| `CMCL_PROXY_SERVICE` | required | text | address and port of the service |
| `CMCL_PROXY_TRUSTED` | none | text | comma-separated addresses or networks of proxies before this one; they may have all connections, and their X-Forwarded-For is believed |

## The endpoint's proxy

Read by `cmcl-haproxy` from the environment of the Ray nodes each time that it starts HAProxy
(`cmcl/haproxy.py`; chart: `serving.trustedProxies`).

| variable | default | permitted | meaning |
|---|---|---|---|
| `CMCL_ENDPOINT_TRUSTED_PROXIES` | none | text | comma-separated addresses or networks of an ingress or other proxies that many clients come through; they may have all connections |

## Embeddings

Options of `python -m workers.serve` and arguments of the Serve application
(`workers/serve/settings.py`).

{serve}
### An encoder

A declaration, for preparation and for the endpoint ([encoders](encoders.md),
`cmcl/contract/encoder.py`).

{encoder}"""

_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def settings_document() -> str:
    """`docs/settings.md`."""
    return _HEAD.format(
        service=_table("variable", Settings, lambda field: f"CMCL_{field.upper()}"),
        train=_table("variable", TrainSettings, lambda field: f"CMCL_{field.upper()}"),
        prepare=_table("variable", PrepareSettings, lambda field: f"CMCL_PREPARE_{field.upper()}"),
        serve=_table("argument", ServeArgs, str),
        encoder=_table("field", EncoderSpec, str),
        grant=_table("field", OwnerGrant, str),
    )


def openapi_document() -> str:
    """`docs/openapi.json`: the control plane's response to /openapi.json."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            database_url=f"sqlite:///{folder}/cmcl.db",
            store_uri=(Path(folder) / "store").as_uri(),
            auth="off",
        )
        app = create_app(settings)
        document = app.openapi()
        app.state.context.close()
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def endpoint_openapi_document() -> str:
    """`docs/openapi-embeddings.json`: the embeddings endpoint's response to /openapi.json."""
    with tempfile.TemporaryDirectory() as folder:
        store = FlakyStore(LocalStore(Path(folder)))
        args = ServeSettings(store=store.uri)
        document = describe(Replica(store, args).parts(args)).openapi()
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def command_line_document() -> str:
    """`docs/cli.md`: all commands with their arguments and options."""
    return "\n".join(["# Command line", "", _CLI_HEAD, *_commands(command_tree(), "cmcl")]) + "\n"


def forgetting_picture() -> str:
    """`docs/pictures/forgetting.svg`: what earlier datasets of the example lost, with the default method and without one."""
    measured = json.loads((ROOT / "docs/benchmarks/stream-example-256.json").read_text())
    names = [dataset[3:-3] for dataset in measured["datasets"]]

    def panel(method: str) -> Memory:
        rows = enumerate(measured["methods"][method]["matrix"], start=1)
        # A row has recall of later datasets, too.
        learned = (
            (number, [*row[:number], *[None] * (len(names) - number)]) for number, row in rows
        )
        return Memory(names, [MemoryRow(number, names[number - 1], row) for number, row in learned])

    panels = {"protected": panel("improve"), "unprotected": panel("vanilla")}
    return forgetting_matrices(panels) + "\n"


GENERATED: dict[str, Callable[[], str]] = {
    "docs/settings.md": settings_document,
    "docs/cli.md": command_line_document,
    "docs/openapi.json": openapi_document,
    "docs/openapi-embeddings.json": endpoint_openapi_document,
    "docs/pictures/forgetting.svg": forgetting_picture,
    "helm/README.md": chart_readme,
    **SYNC_MODULES,
}


def main() -> None:
    """Write all generated files."""
    for name, document in GENERATED.items():
        (ROOT / name).write_text(document())


def _commands(command: Any, path: str) -> Iterator[str]:
    """The sections of a command and of those below it."""
    inner = getattr(command, "commands", {})
    yield from ("", f"## `{path}`" if inner else f"### `{path}`")
    if path != "cmcl":
        yield from ("", " ".join(str(command.help).split()))
    parameters = [each for each in command.params if path != "cmcl"]
    if parameters:
        yield from ("", "| argument or option | meaning |", "|---|---|")
    for each in parameters:
        is_option = each.param_type_name == "option"
        options = f"{', '.join(each.opts)} {each.metavar or ''}".strip()
        name = options if is_option else (each.metavar or str(each.name).upper())
        variable = f" (`{each.envvar}`)" if each.envvar else ""
        meaning = " ".join(str(each.help).split())
        yield f"| `{_cell(name)}`{variable} | {_cell(meaning)} |"
    for name, each in inner.items():
        yield from _commands(each, f"{path} {name}")


def _cell(text: str) -> str:
    """Text in which a bar does not end the cell."""
    return text.replace("|", "\\|")


def _table(head: str, model: type[BaseModel], named: Callable[[str], str]) -> str:
    """Return a table with one row per field: own fields first, then inherited ones."""
    schema = model.model_json_schema()
    inherited = {name for base in model.__mro__[1:] for name in getattr(base, "model_fields", ())}
    fields = sorted(schema["properties"].items(), key=lambda field: field[0] in inherited)
    rows = [
        f"| `{named(field)}` | {_default(field, value, schema)} | {_permitted(value)} "
        f"| {value.get('description', '')} |"
        for field, value in fields
    ]
    return "\n".join(
        [f"| {head} | default | permitted | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _default(field: str, value: Schema, schema: Schema) -> str:
    if field in schema.get("required", []):
        return "required"
    default = value.get("default")
    return f"`{default}`" if default not in (None, "", []) else "-"


def _permitted(value: Schema) -> str:
    parts = [part for part in value.get("anyOf", [value]) if part.get("type") != "null"]
    (kind,) = parts
    if "enum" in kind:
        return ", ".join(f"`{option}`" for option in kind["enum"])
    bounds = [f"{sign} {kind[name]}" for name, sign in _BOUNDS if name in kind]
    return ", ".join([str(kind["type"]), *bounds])


if __name__ == "__main__":
    main()
