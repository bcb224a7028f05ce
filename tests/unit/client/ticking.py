"""A control plane whose reconciler runs beside a test, and a raw folder for it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.control_plane import ControlPlane

CLIP = {
    "name": "clip-image",
    "kind": "sentence-transformers",
    "takes": "image",
    "width": 4,
    "model": "/models/clip",
}
RAW_MODEL = {"width": 8, "modalities": {"image": {"encoder": "clip-image"}, "text": 3}}


@contextmanager
def ticking(plane: ControlPlane) -> Iterator[None]:
    """Run rounds of the reconciler in a thread until the block ends."""
    is_over = threading.Event()

    def tick() -> None:
        while not is_over.wait(0.01):
            plane.tick()

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def captioned(folder: Path, *names: str) -> Path:
    """A folder with a picture and a caption of each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.jpg").write_bytes(name.encode())
        (folder / f"{name}.txt").write_text(f"a {name}", encoding="utf-8")
    return folder
