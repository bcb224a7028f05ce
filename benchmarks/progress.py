"""Progress messages on stderr. stdout is reserved for results."""

import sys


def log_progress(words: str) -> None:
    """Write a line to stderr and flush it."""
    print(words, file=sys.stderr, flush=True)
