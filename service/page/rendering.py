"""Templates to responses: whole pages, and their parts that change while a page is open.

A live part is a block of a template whose name begins with `live_`, with one element of the same id. The script of an
open page asks for the page's own address with `?fragment=<block>`, and gets these blocks alone.
"""

import gzip
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import resources
from importlib.metadata import version
from pathlib import PurePath
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from cmcl.contract import DISTRIBUTION
from cmcl.contract.api.access import Whoami
from cmcl.pictures import STYLESHEET, Picture
from service.core.clock import Clock
from service.core.errors import FieldProblem, NotFound, Unprocessable
from service.core.principal import Principal
from service.database.queries.sessions import SessionRow
from service.page import formats
from service.page.explanations import (
    DONE,
    EVENT_LABELS,
    EVENT_TONES,
    EXPLANATIONS,
    KINDS,
    REASONS,
    STATES,
)

PREFIX = "/ui"
FRAGMENT = "fragment"
# The query that asks for a figure of a page as a file.
PICTURE = "picture"
_LIVE = "live_"
# Address below `/ui/`, label, and the name by which a template marks itself (`section`).
NAVIGATION = (
    ("", "Overview", "overview"),
    ("models", "Models", "models"),
    ("jobs", "Jobs", "jobs"),
    ("datasets", "Datasets", "datasets"),
    ("try", "Try it", "try"),
    ("collections", "Collections", "collections"),
    ("events", "Events", "events"),
)
# The pages of one model: what follows its name in the address, label, and name for `ui.model_tabs`.
MODEL_NAVIGATION = (
    ("", "Versions", "model"),
    ("/memory", "Memory", "memory"),
)
# Smaller ones are not worth it; and the time of one request must stay short.
_COMPRESSED_BYTES = 1024
_LEVEL = 5

# Pixels that a figure has at a window of 1024: in a card over the whole width, over two thirds of it and over half of it;
# and on a phone. The style sheet has the same widths: a card that is narrower shows the drawing for a phone.
WHOLE, TWO_THIRDS, HALF, PHONE = 940.0, 600.0, 440.0, 300.0

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_STYLES = "style.css"
# Comments and indentation of the style sheet.
_NOT_SENT = re.compile(r"/\*.*?\*/|\n\s*", re.DOTALL)
_DIGITS = 16
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class StaticFile:
    """A file, plain and compressed."""

    media_type: str
    plain: bytes = field(repr=False)
    compressed: bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, content: bytes) -> "StaticFile":
        compressed = gzip.compress(content, mtime=0)
        return cls(_TYPES[PurePath(name).suffix], content, compressed)


class StaticFiles:
    """The style sheet, scripts and icons of `service/page/static`: read once, compressed once, addressed by their digest.

    The digest is that of all files together, because scripts import each other by relative addresses. An address with
    another digest is one of another release, whose page is open in a browser while replicas are replaced: it gets the
    present file, which must not be cached under that address.
    """

    def __init__(self) -> None:
        folder = resources.files(__package__) / "static"
        contents = {
            each.name: each.read_bytes()
            for each in sorted(folder.iterdir(), key=lambda each: each.name)
            if PurePath(each.name).suffix in _TYPES
        }
        # In one file, so that a page waits for one.
        styles = STYLESHEET + contents[_STYLES].decode()
        contents[_STYLES] = _NOT_SENT.sub("", styles).encode()
        whole = hashlib.sha256()
        for name, content in contents.items():
            whole.update(f"{name} {len(content)}\n".encode() + content)
        self.digest = whole.hexdigest()[:_DIGITS]
        self._files = {name: StaticFile.of(name, content) for name, content in contents.items()}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def response(self, digest: str, name: str, encodings: str) -> Response:
        """Serve a file. Raises NotFound."""
        found = self._files.get(name)
        if found is None:
            raise NotFound(f"there is no file {name!r}")
        headers = {
            "Cache-Control": _FOR_EVER if digest == self.digest else "no-store",
            "Vary": "Accept-Encoding",
        }
        if "gzip" not in encodings:
            return Response(found.plain, headers=headers, media_type=found.media_type)
        headers["Content-Encoding"] = "gzip"
        return Response(found.compressed, headers=headers, media_type=found.media_type)


@cache
def static_files() -> StaticFiles:
    """The files, which all apps of a process share: they are compressed once."""
    return StaticFiles()


@dataclass(frozen=True)
class Visitor:
    """Who looks at the page. `session` is None while keys are off, with a bearer token, and before signing in."""

    principal: Principal
    session: SessionRow | None = None
    is_signed_in: bool = True


class Pages:
    """The templates, and what all of them get. It is created once."""

    def __init__(self, files: StaticFiles, clock: Clock, *, is_open: bool) -> None:
        self._files = files
        self._clock = clock
        self._is_open = is_open
        self._templates = _environment()
        self._macros = self._templates.get_template("macros.html")
        self._actions = self._templates.get_template("actions.html")

    def render(
        self, request: Request, name: str, status: int = 200, /, **values: object
    ) -> Response:
        """The response for a page, or for the parts of it that the request names.

        `values` are view models of the API. A template has no other access to the control plane.
        """
        if name_of_picture := request.query_params.get(PICTURE):
            return self._picture(request, name_of_picture, values)
        # Each once, however often it is named.
        wanted = list(dict.fromkeys(request.query_params.getlist(FRAGMENT)))
        if not wanted:
            return self.render_whole(request, name, status, **values)
        template = self._templates.get_template(name)
        text = _fragments(template, wanted, self._every(request, values))
        return _compressed(text, status, request.headers.get("accept-encoding", ""))

    def _picture(self, request: Request, name: str, values: dict[str, object]) -> Response:
        """A figure of the page as a file, with the address of the page, the newest version and the time in it. Raises NotFound."""
        found = values.get(name)
        if not isinstance(found, Figure):
            raise NotFound(f"this page has no picture {name[:80]!r}")
        path = request.url.path.removeprefix(f"{PREFIX}/")
        asked = _query_with(request.query_params, **{PICTURE: ""})
        summary = values.get("summary", values.get("model"))
        newest = getattr(getattr(summary, "newest", None), "version", None)
        what = [
            f"{path}?{asked}" if asked else path,
            *([f"newest version {newest}"] if newest else []),
        ]
        note = " · ".join(["cmcl", *what, f"{self._clock():%Y-%m-%d %H:%M} UTC"])
        file = f"{path.replace('/', '-') or 'overview'}-{name}.svg"
        headers = {"Content-Disposition": f'attachment; filename="{file}"'}
        svg = found.wide.svg(standalone=True, note=note)
        return Response(svg, headers=headers, media_type=_TYPES[".svg"])

    def render_whole(
        self, request: Request, name: str, status: int, /, **values: object
    ) -> Response:
        """The response for a whole page, even if the request names parts of it."""
        text = self._templates.get_template(name).render(self._every(request, values))
        return _compressed(text, status, request.headers.get("accept-encoding", ""))

    def _every(self, request: Request, values: dict[str, object]) -> dict[str, object]:
        common = self._common(request)
        taken = common.keys() & values.keys()
        if taken:
            raise ValueError(f"every template has {', '.join(sorted(taken))} already")
        return {**common, **values}

    def _common(self, request: Request) -> dict[str, object]:
        visitor = visitor_of(request)
        now, root = self._clock(), root_of(request.url.path)
        principal = visitor.principal
        values = {
            "root": root,
            "static": f"{root}static/{self._files.digest}/",
            "path": request.url.path.removeprefix(f"{PREFIX}/"),
            "query": request.query_params,
            "query_with": partial(_query_with, request.query_params),
            "now": now,
            "when": partial(formats.when, now=now),
            "release": version(DISTRIBUTION),
            "identity": Whoami(
                name=principal.name, owner=principal.owner, scopes=sorted(principal.scopes)
            ),
            "session": visitor.session,
            "is_signed_in": visitor.is_signed_in,
            "is_open": self._is_open,
        }
        # Blocks do not see what their template imports, when they are rendered alone.
        values["ui"] = self._macros.make_module(values)
        return {**values, "acts": self._actions.make_module(values)}


def pages_of(request: Request) -> Pages:
    pages: Pages = request.app.state.pages
    return pages


def visitor_of(request: Request) -> Visitor:
    visitor: Visitor = request.scope["state"]["visitor"]
    return visitor


def root_of(path: str) -> str:
    """The relative address of `/ui/` from a path below it: an ingress may add a prefix that is not known here."""
    return "../" * path.removeprefix(f"{PREFIX}/").count("/") or "./"


def _query_with(query: QueryParams, **values: object) -> str:
    """The query of the address with other values, as a page has it and not one of its parts; "": without the value."""
    kept = [each for each in query.multi_items() if each[0] not in {*values, FRAGMENT, "done"}]
    return urlencode(kept + [(name, str(value)) for name, value in values.items() if value != ""])


def is_fragment(request: Request) -> bool:
    """Whether the script of an open page sent the request."""
    return FRAGMENT in request.query_params


@cache
def _environment() -> Environment:
    """The templates, which all apps of a process share: each is compiled on first use."""
    # Undefined names are errors, and everything is escaped: names, reasons and messages are untrusted.
    templates = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    templates.filters.update(formats.FILTERS)
    templates.tests.update(formats.TESTS)
    templates.globals.update(
        NOTHING=formats.NOTHING,
        NAVIGATION=NAVIGATION,
        MODEL_NAVIGATION=MODEL_NAVIGATION,
        EXPLANATIONS=EXPLANATIONS,
        STATES=STATES,
        KINDS=KINDS,
        REASONS=REASONS,
        EVENT_LABELS=EVENT_LABELS,
        EVENT_TONES=EVENT_TONES,
        DONE=DONE,
    )
    return templates


def _fragments(template: Template, wanted: list[str], values: dict[str, object]) -> str:
    unknown = [name for name in wanted if name not in template.blocks or not name.startswith(_LIVE)]
    if unknown:
        live = ", ".join(sorted(name for name in template.blocks if name.startswith(_LIVE)))
        message = f"this page has the live parts: {live or 'none'}"
        raise Unprocessable(message, FieldProblem(FRAGMENT, message, unknown[0]))
    context = template.new_context(values)
    return "".join(part for name in wanted for part in template.blocks[name](context))


def _compressed(text: str, status: int, encodings: str) -> Response:
    body, headers = text.encode(), {"Vary": "Accept-Encoding, Cookie"}
    if "gzip" in encodings and len(body) >= _COMPRESSED_BYTES:
        body = gzip.compress(body, _LEVEL)
        headers["Content-Encoding"] = "gzip"
    return Response(body, status, headers, "text/html; charset=utf-8")


@dataclass(frozen=True)
class Figure:
    """A picture in two widths. One is shown, by the width of its card."""

    wide: Picture
    narrow: Picture


def figure(draw: Callable[[float], Picture], width: float = HALF) -> Figure:
    """Draw a picture in that width, and for a phone. `draw` gets the width in pixels."""
    return Figure(draw(width), draw(PHONE))
