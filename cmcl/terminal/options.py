"""Options and arguments that several commands have."""

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from cmcl.calls.shards import UploadMode
from cmcl.client import DEFAULT_EMBEDDINGS_URL, DEFAULT_SERVICE_URL
from cmcl.contract.modality import ModalityPair

Url = Annotated[
    str, typer.Option("--url", envvar="CMCL_URL", help="the control plane", show_default=True)
]
EmbeddingsUrl = Annotated[
    str, typer.Option("--embeddings-url", envvar="CMCL_EMBEDDINGS_URL", help="the query endpoint")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="JSON on stdout: one document, or one in each line")
]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", envvar="CMCL_MODEL")]
QueriedModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="NAME for the live version, or NAME@VERSION")
]
OfModel = Annotated[
    str, typer.Option("--model", "-m", envvar="CMCL_MODEL", help="name of the model")
]
OfAnyModel = Annotated[
    str | None, typer.Option("--model", "-m", help="of this model alone", envvar="CMCL_MODEL")
]
Reason = Annotated[str, typer.Option("--reason", help="for the history")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]
PairText = Annotated[str, typer.Option("--pair", help="FIRST,SECOND, e.g. image,text")]
Sources = Annotated[
    list[str],
    typer.Argument(metavar="SHARDS...", help="folders, files, or addresses (s3://..., file://...)"),
]
Upload = Annotated[
    UploadMode,
    typer.Option(help="auto: send local files that the service cannot read; always; never"),
]

DEFAULT_URL = DEFAULT_SERVICE_URL
DEFAULT_QUERY_URL = DEFAULT_EMBEDDINGS_URL
_LONGEST_NAME = 48


def parse_pair(text: str) -> ModalityPair:
    """FIRST,SECOND. Raises BadParameter, and ValidationError for names that cannot be."""
    first, comma, second = text.partition(",")
    if not comma:
        raise typer.BadParameter(
            f"{text!r}: write FIRST,SECOND, for example image,text", param_hint="--pair"
        )
    return ModalityPair(first=first.strip(), second=second.strip())


def name_of(source: str) -> str:
    """A dataset's name from where it lies: the folder's, or the file's without its ending."""
    path = Path(urlsplit(source).path if "://" in source else source).resolve()
    stem = path.name if path.is_dir() else path.name.split(".")[0]
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    if not name:
        raise typer.BadParameter(f"{source!r} gives no name; say --name", param_hint="--name")
    return name
