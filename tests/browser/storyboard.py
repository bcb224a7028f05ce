"""`python -m tests.browser.storyboard`: pictures of the page while `cmcl demo` runs, with what each shows.

Each scene is taken as soon as what it shows has happened, in docs/pictures/demo-NUMBER-NAME.webp; docs/pictures/demo.md
has them in their order. Takes as long as the demo.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page

from tests.browser.chromium import PROGRAMS, find_chromium, launch, open_page
from tests.browser.pictures import FOLDER, save

MODEL, RAW_MODEL = "improve", "demo-raw"
_ADDRESS = "watch it at "
_POLL_SECONDS = 0.5
# Phases of an attempt in which nothing is learned yet.
_BEFORE = ("waiting", "starting")
_LONGEST_SECONDS = 1800.0


@dataclass(frozen=True)
class Demo:
    """The progress of the demo, read from its API."""

    client: httpx.Client

    def job(self, model: str, state: str) -> dict[str, Any] | None:
        """A job of the model in that state."""
        query = {"model": model, "state": state, "limit": "1", "order": "desc"}
        found: list[dict[str, Any]] = self.client.get("/v1/jobs", params=query).json()["items"]
        return found[0] if found else None

    def training(self, model: str, version: int) -> str | None:
        """The address of the job that learns that version."""
        job = self.job(model, "running")
        progress = (job or {}).get("progress")
        if job is None or not progress or job["version"] != version:
            return None
        return None if progress["phase"] in _BEFORE else f"jobs/{job['id']}"

    def live(self, model: str) -> int:
        """The live version; 0 before the first."""
        response = self.client.get(f"/v1/models/{model}/live")
        return response.json()["version"] if response.status_code == 200 else 0

    def preparing(self, model: str) -> str | None:
        """The address of a job whose rows are being encoded."""
        job = self.job(model, "preparing")
        progress = (job or {}).get("preparation") or {}
        return f"jobs/{job['id']}" if job and progress.get("rows_done") else None


@dataclass(frozen=True)
class Scene:
    """A picture: its name, the address below `/ui/` once it can be taken, and what it shows."""

    name: str
    address: Callable[[Demo], str | None]
    caption: str


def _from(version: int, address: str) -> Callable[[Demo], str | None]:
    return lambda demo: address if demo.live(MODEL) >= version else None


SCENES = (
    Scene("nothing-yet", lambda _: "", "Before the first dataset: three commands to begin with."),
    Scene("first-dataset", lambda demo: demo.training(MODEL, 1), "The first dataset is learned."),
    Scene("first-version", _from(1, f"models/{MODEL}/versions/1"), "It is a version, and live."),
    Scene(
        "learning-under-queries",
        lambda demo: "" if demo.training(MODEL, 3) else None,
        "The third dataset is learned while the second version answers 200 queries a second.",
    ),
    Scene(
        "certificate",
        _from(3, f"models/{MODEL}/versions/3"),
        "What the third version changed of each earlier dataset.",
    ),
    Scene("chain", _from(5, f"models/{MODEL}"), "Five datasets later: the chain of versions."),
    Scene(
        "memory", _from(5, f"models/{MODEL}/memory"), "What each version retrieves of each dataset."
    ),
    Scene(
        "raw-pairs",
        lambda demo: demo.preparing(RAW_MODEL),
        "Raw pictures and texts of another model are encoded on the cluster.",
    ),
    Scene(
        "pairs-of-modalities",
        lambda demo: f"models/{RAW_MODEL}" if demo.live(RAW_MODEL) >= 2 else None,
        "Its modalities, and the pairs that were never trained.",
    ),
)


def main() -> int:
    """Run the demo and take all scenes. Exit status 1 without a browser, or if a scene never came."""
    program = find_chromium()
    if program is None:
        print(f"no browser: install one of {', '.join(PROGRAMS)}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, Path(folder, "output").open("w+") as output:
        program_of_demo = Path(sys.executable).with_name("cmcl")
        command = [str(program_of_demo), "demo", "--folder", f"{folder}/demo"]
        command += ["--queries-per-second", "200"]
        demo = subprocess.Popen(command, stdout=output)
        try:
            origin = _origin(demo, Path(output.name))
            with launch(program) as browser, open_page(browser, origin, height=800) as (page, _):
                missing = _take_all(demo, page, origin)
        finally:
            demo.terminate()
            demo.wait()
    if missing:
        print(f"never came: {', '.join(missing)}", file=sys.stderr)
    return 1 if missing else 0


def _origin(demo: subprocess.Popen[bytes], output: Path) -> str:
    """Wait until the demo prints the address of the page."""
    while demo.poll() is None:
        _, found, rest = output.read_text().partition(_ADDRESS)
        if found and "\n" in rest:
            return rest.partition("/ui/")[0]
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"the demo ended with {demo.returncode}: {output.read_text()}")


def _take_all(demo: subprocess.Popen[bytes], page: Page, origin: str) -> list[str]:
    """Take each scene when it comes. Returns the names of those that did not."""
    for old in FOLDER.glob("demo-*"):
        old.unlink()
    deadline = time.monotonic() + _LONGEST_SECONDS
    waiting, taken = list(enumerate(SCENES, start=1)), dict[int, Path]()
    with httpx.Client(base_url=origin, timeout=30) as client:
        while waiting and demo.poll() is None and time.monotonic() < deadline:
            for number, scene in list(waiting):
                address = scene.address(Demo(client))
                if address is not None:
                    page.goto(f"/ui/{address}")
                    taken[number] = save(page.screenshot(), f"demo-{number}-{scene.name}")
                    print(taken[number], flush=True)
                    waiting.remove((number, scene))
            time.sleep(_POLL_SECONDS)
    FOLDER.joinpath("demo.md").write_text(
        markdown({number: path.name for number, path in taken.items()})
    )
    return [scene.name for _, scene in waiting]


def markdown(taken: Mapping[int, str]) -> str:
    """The page of the scenes; `taken` has the names of their pictures, by number."""
    parts = ["# The demo, watched on its page", "Made by `python -m tests.browser.storyboard`."]
    for number, name in sorted(taken.items()):
        caption = SCENES[number - 1].caption
        parts += [f"{number}. {caption}", f"![{caption}]({name})"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
