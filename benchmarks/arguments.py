"""Types of command-line arguments that the benchmarks have in common."""

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """Mistakes are answered in one line, with status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: {message}\n")


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Such numbers between commas; each once, in rising order."""
    return tuple(sorted({count(part.strip()) for part in text.split(",")}))
