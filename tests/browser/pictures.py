"""`python -m tests.browser.pictures`: pictures for the documentation: pages with the sample data, MLflow, the site.

Each page of a noun in light, dark, and on a phone, in docs/pictures/page-NAME-SCHEME.webp. The same pages give the same
pictures, as long as the machine has the same browser and fonts.
"""

import random
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

from PIL import Image
from playwright.sync_api import Browser

from tests.browser.chromium import PROGRAMS, Scheme, find_chromium, launch, open_page
from tests.browser.pages import PAGES, PageCase
from tests.browser.sample import Names, build
from tests.browser.sample_endpoint import add_endpoint
from tests.browser.served_plane import ServedPlane, serve
from tests.browser.tool_pictures import take_site

FOLDER = Path("docs/pictures")
# Name of the picture: scheme, width and height of the window.
VIEWS: dict[str, tuple[Scheme, int, int]] = {
    "light": ("light", 1280, 800),
    "dark": ("dark", 1280, 800),
    "phone": ("light", 390, 760),
}
# Few colours are enough for a page, and make a third of the bytes.
_COLOURS = 64
# All pictures, with those of the storyboard, so that a clone of the repository stays small.
MOST_BYTES = 1_500_000


def main() -> int:
    """Take all pictures. Exit status 1 without a browser, or if they are too large."""
    program = find_chromium()
    if program is None:
        print(f"no browser: install one of {', '.join(PROGRAMS)}", file=sys.stderr)
        return 1
    numbers = random.Random(0)
    # Ids are random in the product; here they are the same each time, so that pictures are.
    with (
        patch.object(uuid, "uuid4", lambda: uuid.UUID(int=numbers.getrandbits(128), version=4)),
        _sample_folder() as folder,
        serve(folder) as plane,
    ):
        names = build(plane)
        add_endpoint(plane, names)
        with launch(program) as browser:
            cases = [case for case in PAGES if case.has_picture]
            paths = [_take(browser, plane, names, case, view) for case in cases for view in VIEWS]
            for name, picture in take_site(browser):
                save(picture, name)
    for old in set(FOLDER.glob("page-*")) - set(paths):
        old.unlink()
    size = sum(path.stat().st_size for path in FOLDER.glob("*.webp"))
    print(f"{len(paths)} pictures of pages; all in {FOLDER} have {size / 1e6:.2f} MB")
    return 0 if size <= MOST_BYTES else 1


@contextmanager
def _sample_folder() -> Iterator[Path]:
    """A new folder whose name, which messages on the pages have, is the same each time."""
    folder = Path(tempfile.gettempdir(), "cmcl-sample")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _take(browser: Browser, plane: ServedPlane, names: Names, case: PageCase, view: str) -> Path:
    scheme, width, height = VIEWS[view]
    size = {"width": width, "height": height}
    with open_page(browser, plane.origin, scheme=scheme, cookies=plane.cookies, **size) as (
        page,
        _,
    ):
        page.clock.set_fixed_time(plane.clock())
        page.goto(case.address(names))
        return save(page.screenshot(), f"page-{case.name}-{view}")


def save(picture: bytes, name: str) -> Path:
    """Store a picture with few colours."""
    path = FOLDER / f"{name}.webp"
    with Image.open(BytesIO(picture)) as opened:
        reduced = opened.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        reduced.convert("RGB").save(path, lossless=True, method=6)
    return path


if __name__ == "__main__":
    sys.exit(main())
