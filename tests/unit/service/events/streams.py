"""Parsing of event streams."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """One message of a stream."""

    event: str
    id: str
    data: str


def parse(text: str) -> list[Told]:
    """The messages of a stream that has ended; without comments."""
    blocks = [block for block in text.replace("\r\n", "\n").split("\n\n") if "data:" in block]
    return [_message(block) for block in blocks]


def kinds(text: str) -> list[str]:
    """The kinds of its events, without progress."""
    return [each.event for each in parse(text) if each.id]


def _message(block: str) -> Told:
    fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
    return Told(fields["event"], fields.get("id", ""), fields["data"])
