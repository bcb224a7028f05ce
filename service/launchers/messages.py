"""What a cluster says of an attempt, cut to what people read."""

_LONGEST = 2000


def shortened(message: str) -> str:
    """Ray adds the end of the log: the first line says what happened, the last ones say why."""
    if len(message) <= _LONGEST:
        return message
    first, _, rest = message.partition("\n")
    return f"{first[:_LONGEST]}\n…{rest[-_LONGEST:]}"
