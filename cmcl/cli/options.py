"""Options and arguments shared by several commands."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer
from pydantic import BaseModel, ValidationError

from cmcl.cli.console import stderr
from cmcl.cli.errors import CommandError
from cmcl.client import DEFAULT_EMBEDDINGS_URL, DEFAULT_SERVICE_URL, InvalidArgument, Order
from cmcl.client.files import UploadMode
from cmcl.contract.modality import ModalityPair

if TYPE_CHECKING:
    from cmcl.pictures import Picture

Options = TypeVar("Options", bound=BaseModel)

Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="CMCL_URL", help="address of the control plane", show_default=True
    ),
]
EmbeddingsUrl = Annotated[
    str,
    typer.Option(
        "--embeddings-url",
        envvar="CMCL_EMBEDDINGS_URL",
        help="address of the embeddings endpoint",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="print JSON: one document, or one per line for lists")
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", envvar="CMCL_MODEL", help="name of the model")
]
ModelOfVersion = Annotated[
    str,
    typer.Argument(metavar="MODEL", envvar="CMCL_MODEL", help="name of the model, or NAME@VERSION"),
]
VersionNumber = Annotated[
    int | None,
    typer.Argument(
        metavar="VERSION",
        min=1,
        help="version, unless MODEL is NAME@VERSION; without MODEL, it is one of CMCL_MODEL",
    ),
]
QueriedModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="NAME for the live version, or NAME@VERSION")
]
OfModel = Annotated[
    str, typer.Option("--model", "-m", envvar="CMCL_MODEL", help="name of the model")
]
# Without CMCL_MODEL, which replaces only required arguments: lists are filtered only on request.
OfAnyModel = Annotated[
    str | None, typer.Option("--model", "-m", help="only those of this model; default all")
]
ListOrder = Annotated[
    Order,
    typer.Option("--order", help="asc: oldest, or first name, first; desc: the other way round"),
]
AttemptNumber = Annotated[
    int | None, typer.Option("--attempt", min=1, help="number of the attempt; default the newest")
]
MostItems = Annotated[
    int | None, typer.Option("--limit", min=1, help="most items to show; default all")
]
Watch = Annotated[
    bool,
    typer.Option(
        "--watch", help="follow the job to its end; exit code 3 if it ends without a version"
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="reason, for the history")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask for confirmation")]
PairText = Annotated[
    str, typer.Option("--pair", help="pair of modalities FIRST,SECOND, e.g. image,text")
]
Sources = Annotated[
    list[str],
    typer.Argument(metavar="SHARDS...", help="folders, files, or addresses (s3://..., file://...)"),
]
Upload = Annotated[
    UploadMode,
    typer.Option(
        help="upload local files: auto (those that the service cannot read), always, never"
    ),
]


def _checked_id(prefix: str, what: str, listed_by: str) -> Callable[[str], str]:
    """Return a callback that rejects malformed ids without a request."""
    form = re.compile(rf"{prefix}-[0-9a-f]{{12}}")

    def check(value: str) -> str:
        if not form.fullmatch(value):
            raise typer.BadParameter(f"{value!r} is not a {what} id; `{listed_by}` shows them")
        return value

    return check


def _id(prefix: str, what: str, listed_by: str) -> Any:
    return typer.Argument(
        metavar=what.upper(),
        help=f"id, {prefix}-...; `{listed_by}` shows them",
        callback=_checked_id(prefix, what, listed_by),
    )


JobId = Annotated[str, _id("job", "job", "cmcl job list")]
DatasetId = Annotated[str, _id("ds", "dataset", "cmcl dataset list")]
KeyId = Annotated[str, _id("key", "key", "cmcl key list")]
WebhookId = Annotated[str, _id("wh", "webhook", "cmcl webhook list")]

DEFAULT_URL = DEFAULT_SERVICE_URL
DEFAULT_QUERY_URL = DEFAULT_EMBEDDINGS_URL
_LONGEST_NAME = 48
# Fields whose options have different names.
_OPTION_OF = {"modalities": "--modality"}


def model_version(model: str, version: int | None) -> tuple[str, int | None]:
    """Parse NAME@VERSION, or NAME and VERSION; VERSION alone is one of CMCL_MODEL. Raises BadParameter."""
    default = os.environ.get("CMCL_MODEL")
    is_number = model.isascii() and model.isdecimal()
    if default and is_number and version is None and model != default:
        model = f"{default}@{model}"
    name, at, number = model.partition("@")
    if not at:
        return model, version
    if version is not None:
        raise typer.BadParameter(f"{model!r} and {version}: give the version only once")
    if not (number.isascii() and number.isdecimal() and int(number) >= 1):
        raise typer.BadParameter(f"{model!r}: write NAME@VERSION; versions are numbered from 1")
    return name, int(number)


def model_and_argument(model: str, argument: str | None) -> tuple[str, str]:
    """Parse MODEL and what follows it, which is alone with CMCL_MODEL. Raises BadParameter."""
    if argument is not None:
        return model, argument
    default = os.environ.get("CMCL_MODEL")
    if not default:
        raise typer.BadParameter(f"only {model!r} is given: write MODEL first, or set CMCL_MODEL")
    return default, model


def exact_version(model: str, version: int | None) -> tuple[str, int]:
    """As `model_version`, but the version is required. Raises BadParameter."""
    name, number = model_version(model, version)
    if number is None:
        raise typer.BadParameter(
            f"the version of {name!r} is missing: write {name}@VERSION; `cmcl version list {name}` "
            "shows them"
        )
    return name, number


def parse_pair(text: str) -> ModalityPair:
    """Parse FIRST,SECOND. Raises BadParameter, and InvalidArgument for invalid names."""
    first, comma, second = text.partition(",")
    if not comma:
        raise typer.BadParameter(
            f"{text!r}: write FIRST,SECOND, for example image,text", param_hint="--pair"
        )
    return from_options(
        ModalityPair, {"first": first.strip(), "second": second.strip()}, option="--pair"
    )


def from_options(
    kind: type[Options], values: Mapping[str, Any], option: str | None = None
) -> Options:
    """Build an object from options. Raises InvalidArgument with the option and its value.

    option: the option of all values; by default each field has the option of its name.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise InvalidArgument("; ".join(_wrong_option(each, option) for each in found)) from error


def _wrong_option(found: Mapping[str, Any], option: str | None) -> str:
    message = str(found["msg"]).removeprefix("Value error, ")
    names = [part for part in found["loc"] if isinstance(part, str)]
    field = next(
        (name for name in reversed(names) if name in _OPTION_OF), names[-1] if names else ""
    )
    option = option or (_OPTION_OF.get(field, f"--{field.replace('_', '-')}") if field else None)
    if option is None:
        return message
    value = found["input"]
    shown = f" {value}" if isinstance(value, str | int | float) else ""
    return f"{option}{shown}: {message}"


def name_of(source: str) -> str:
    """Derive a dataset's name from the name of its folder, or of its file without the suffix."""
    path = Path(urlsplit(source).path if "://" in source else source).resolve()
    stem = path.name if path.is_dir() else path.name.split(".")[0]
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    if not name:
        raise typer.BadParameter(
            f"cannot derive a name from {source!r}; give --name", param_hint="--name"
        )
    return name


def _svg_file(path: Path | None) -> Path | None:
    """Reject a file of another kind. Raises BadParameter."""
    if path is not None and path.suffix.lower() != ".svg":
        raise typer.BadParameter(f"{str(path)!r}: pictures are SVG; name a file that ends in .svg")
    return path


PictureFile = Annotated[
    Path | None,
    typer.Option(
        "--picture", metavar="FILE.svg", help="also draw it to this file", callback=_svg_file
    ),
]


def save_pictures(path: Path, heading: str, drawn: Iterable["Picture | None"]) -> None:
    """Write pictures to one SVG file, those of None left out. Raises CommandError if there is none, OSError."""
    # Loaded when it is used, because most commands draw nothing.
    from cmcl.pictures import arranged

    shown = {each.title: each for each in drawn if each is not None}
    if not shown:
        raise CommandError(f"{heading}: nothing is measured that could be drawn to {path}")
    path.write_text(arranged(heading, shown) + "\n", encoding="utf-8")
    stderr().print(f"{path}: {'; '.join(shown)}", markup=False, highlight=False, soft_wrap=True)
