"""`cmcl preflight`: what a dataset would meet, before it is posted."""

from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.client import Client
from cmcl.contract.preflight import Outlook
from cmcl.terminal.console import Grid, as_text, show
from cmcl.terminal.exits import Refused
from cmcl.terminal.following import upload_bars
from cmcl.terminal.options import (
    DEFAULT_URL,
    AsJson,
    OfModel,
    PairText,
    Sources,
    Upload,
    Url,
    parse_pair,
)
from cmcl.types import Preflight

_LEGEND = (
    "free: share of the head's entries that may still change, now and after this dataset. "
    "learnable share: the part of the dataset's energy on entries that may change. "
    "like earlier data (familiarity): how much more of the features is in the directions of the "
    "earlier ones than by chance: 1 is all of it, 0 is chance, as with features of another encoder."
)


def preflight(
    shards: Sources,
    pair: PairText,
    model: OfModel,
    upload: Upload = "auto",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Check a dataset before it is posted; exit code 1 if it would be refused. Nothing is trained."""
    with Client(url) as client:
        with upload_bars() as on_upload:
            asked = client.ask_preflight(
                model, parse_pair(pair), shards, upload=upload, on_upload=on_upload
            )
        answer = client.await_preflight(asked.id)
    show(answer, as_json, _view)
    if answer.outlook is None:
        raise Refused(f"pre-flight {answer.id} has no answer: {answer.message or answer.state}")
    if answer.outlook.refusals:
        raise Refused(f"the dataset would be refused: {'; '.join(answer.outlook.refusals)}")


def _view(preflight: Preflight) -> RenderableType:
    outlook = preflight.outlook
    if outlook is None:
        return Text(f"{preflight.id}: {preflight.state}")
    lines = [Text(f"• {sentence}") for sentence in outlook.advice]
    return Group(_heads(outlook), Text(_LEGEND, style="dim"), *lines)


def _heads(outlook: Outlook) -> Grid:
    rows = []
    for modality in outlook.pair:
        found, head = outlook.findings.get(modality), outlook.heads.get(modality)
        moments = head.moments if head else None
        values = (
            found.rows if found else None,
            moments.free_share if moments else None,
            moments.free_share_after if moments else None,
            moments.learnable_share if moments else None,
            moments.familiarity if moments else None,
        )
        rows.append([Text(modality), *map(as_text, values)])
    headings = (
        "modality",
        "rows",
        "free now",
        "free after",
        "learnable share",
        "like earlier data",
    )
    return Grid(headings, rows)
