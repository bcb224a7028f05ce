"""Style sheet, scripts and icons: read once, compressed once, addressed by their digest.

The digest is that of all files together, because scripts import each other by relative addresses. An address with another
digest is one of another release, whose page is open in a browser while replicas are replaced: it gets the present file,
which must not be cached under that address.
"""

import gzip
import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import PurePath

from starlette.responses import Response

from cmcl.pictures import STYLESHEET
from service.errors import NotFound

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_STYLES = "style.css"
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
        """Compress a file."""
        compressed = gzip.compress(content, mtime=0)
        return cls(_TYPES[PurePath(name).suffix], content, compressed)


class StaticFiles:
    """The files of `service/page/static`."""

    def __init__(self) -> None:
        folder = resources.files(__package__) / "static"
        contents = {
            each.name: each.read_bytes()
            for each in sorted(folder.iterdir(), key=lambda each: each.name)
            if PurePath(each.name).suffix in _TYPES
        }
        # In one file, so that a page waits for one.
        contents[_STYLES] = STYLESHEET.encode() + contents[_STYLES]
        whole = hashlib.sha256()
        for name, content in contents.items():
            whole.update(f"{name} {len(content)}\n".encode() + content)
        self.digest = whole.hexdigest()[:_DIGITS]
        self._files = {name: StaticFile.of(name, content) for name, content in contents.items()}

    @property
    def names(self) -> frozenset[str]:
        """Names of the files."""
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
