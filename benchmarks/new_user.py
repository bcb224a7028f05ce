"""How long does a new user need from a folder of pictures with captions to a search by text?

`python -m benchmarks.new_user` runs the commands of docs/start.md on this machine: it starts the whole system, learns
a folder of pictures, each with a text file of its name, and searches. Without FOLDER the pictures are those of
examples/raw. By default it takes about a minute and a half on two free cores.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.command_line import OneLineParser, add_out, listed, log_progress, publish, table
from benchmarks.report import machine
from cmcl.stack_host import HOST, Ports

_ROOT = Path(__file__).parents[1]
_ENCODERS = _ROOT / "examples/encoders/encoders.json"
_PICTURES = _ROOT / "examples/raw/emoji.tar"
_CMCL = Path(sys.executable).parent / "cmcl"
_MODALITIES = ("--modality", "image=@efficientnet-lite0", "--modality", "text=@minilm")
_START_SECONDS = 600


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the commands, print the page, and write page and document."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cmcl-bench-") as name:
        folder = Path(name)
        pictures = options.pictures or folder / "pictures"
        if options.pictures is None:
            _unpack(pictures)
        document = _timed(folder, pictures.resolve(), options.query)
    publish(options.out, "new-user", markdown(document), document)
    return 0


def _timed(folder: Path, pictures: Path, query: str) -> dict[str, Any]:
    began = time.perf_counter()
    with _system(folder) as environment:
        steps = [{"command": "cmcl up", "seconds": time.perf_counter() - began}]
        found = ""
        for command in _commands(query):
            log_progress(f"cmcl {' '.join(command)}")
            started = time.perf_counter()
            arguments = [str(pictures) if part == "PICTURES" else part for part in command]
            found = _run([str(_CMCL), *arguments], environment)
            seconds = time.perf_counter() - started
            steps.append({"command": f"cmcl {' '.join(command)}", "seconds": seconds})
    return {
        "pictures": sum(path.suffix != ".txt" for path in pictures.iterdir()),
        "steps": steps,
        "seconds": sum(float(str(step["seconds"])) for step in steps),
        "query": query,
        "found": found,
        "machine": machine(),
    }


def _commands(query: str) -> list[tuple[str, ...]]:
    """The commands of docs/start.md after `cmcl up`, without the dry run."""
    add = ("dataset", "add", "PICTURES", "--name", "pictures", "--pair", "image,text")
    return [
        ("model", "create", "mine", *_MODALITIES),
        (*add, "--evaluation-share", "0.1", "--watch"),
        ("collection", "create", "pictures", "--model", "mine"),
        ("collection", "add", "pictures", "PICTURES", "--modality", "image"),
        ("search", "pictures", "text", "--text", query, "--top-k", "5"),
    ]


@contextmanager
def _system(folder: Path) -> Iterator[dict[str, str]]:
    """Run `cmcl up` until the end. Yields the environment for other commands once it has printed its addresses."""
    ports = Ports.free()
    log_progress("cmcl up")
    command = [str(_CMCL), "up", "--json", "--encoders", str(_ENCODERS)]
    command += ["--folder", str(folder / "system"), "--port", str(ports.service)]
    command += ["--embeddings-port", str(ports.embeddings)]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError("cmcl up ended before it printed its addresses")
            yield {
                **os.environ,
                "CMCL_URL": f"http://{HOST}:{ports.service}",
                "CMCL_EMBEDDINGS_URL": f"http://{HOST}:{ports.embeddings}",
                "CMCL_MODEL": "mine",
            }
        finally:
            process.terminate()


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_START_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _unpack(folder: Path) -> None:
    """Write the pictures of the example, each with a text of its name, except a damaged one: a collection takes
    no file that cannot be read."""
    folder.mkdir()
    with tarfile.open(_PICTURES) as tar:
        for member in tar:
            key, _, rest = member.name.partition(".")
            content = tar.extractfile(member)
            suffix = {"image.png": ".png", "text.txt": ".txt"}.get(rest)
            if suffix and content is not None and key != "damaged-picture":
                (folder / f"{key}{suffix}").write_bytes(content.read())


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    steps = [(f"`{step['command']}`", f"{step['seconds']:.1f}") for step in document["steps"]]
    parts = [
        "# From a folder of pictures to a search",
        "## Question",
        (__doc__ or "").partition("\n")[0],
        "## Machine",
        listed({name: value for name, value in document["machine"].items() if value is not None}),
        "## Result",
        (
            f"A folder of {document['pictures']} pictures with captions; each command is a process of its own. "
            "PICTURES stands for the folder."
        ),
        table(["command", "seconds"], [*steps, ("**together**", f"{document['seconds']:.1f}")]),
        f"What it found for {document['query']!r}:",
        f"```\n{document['found'].rstrip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.new_user", description=__doc__)
    parser.add_argument(
        "pictures", nargs="?", type=Path, metavar="FOLDER", help="pictures with captions"
    )
    parser.add_argument("--query", default="a red fruit")
    add_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
