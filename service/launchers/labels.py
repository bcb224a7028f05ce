"""Labels of submissions, by the rules of Kubernetes, which are the strictest.

https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/
"""

import re
from collections.abc import Mapping

OURS = "cmcl/"
_LONGEST = 63
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises ValueError for labels that Kubernetes would reject, and for our own prefix."""
    for name, text in labels.items():
        if name.startswith(OURS):
            raise ValueError(f"the label {name!r} begins with {OURS!r}, which is reserved")
        if not _is_name(name):
            raise ValueError(
                f"{name!r} is not a label name: permitted are up to {_LONGEST} letters, digits, '-', '_' and '.', "
                "the first and the last a letter or digit, optionally after a domain and '/'"
            )
        if not _is_value(text):
            raise ValueError(
                f"the label {name!r} has the value {text!r}; permitted are up to {_LONGEST} letters, "
                "digits, '-', '_' and '.', the first and the last a letter or digit"
            )


def legal_value(text: str) -> str:
    """The text as a valid label value. Owner names from tokens may contain other characters."""
    if _is_value(text):
        return text
    return re.sub(r"[^-A-Za-z0-9_.]", "_", text)[:_LONGEST].strip("-_.")


def _is_name(name: str) -> bool:
    prefix, slash, rest = name.rpartition("/")
    is_prefix = not slash or _PREFIX.fullmatch(prefix) is not None
    return is_prefix and len(rest) <= _LONGEST and _NAME.fullmatch(rest) is not None


def _is_value(text: str) -> bool:
    return len(text) <= _LONGEST and _VALUE.fullmatch(text) is not None
