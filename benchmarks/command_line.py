"""What the benchmarks' commands share: arguments, progress messages, and the Markdown of result pages."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: {message}\n")


def count(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def share(text: str) -> float:
    """Parse a number from 0 to 1, without 1."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1, without 1")
    return found


def counts(text: str) -> tuple[int, ...]:
    """Parse comma-separated counts. Return them without duplicates, in rising order."""
    return tuple(sorted({count(part.strip()) for part in text.split(",")}))


def log_progress(words: str) -> None:
    """Write a line to stderr and flush it. stdout is reserved for results."""
    print(words, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def listed(facts: Mapping[str, object]) -> str:
    """Return a Markdown list with one line per entry."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


RESULTS = Path(".cmcl/benchmarks")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the options that `publish` reads."""
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help=f"for page and document (default: {RESULTS})"
    )
    parser.add_argument("--json", action="store_true", help="print the document and not the page")


def publish(
    options: argparse.Namespace, name: str, page: str, document: Mapping[str, object]
) -> None:
    """Write page and document, and print both, the document as the last line."""
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(document) + "\n")
    (folder / f"{name}.md").write_text(page)
    if not options.json:
        print(page)
    print(json.dumps(document), flush=True)
