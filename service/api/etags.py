"""Tags of what can be overwritten, and the condition that nobody has done so meanwhile (RFC 9110)."""

import re
from typing import Annotated

from fastapi import Depends, Header

from service.errors import FieldProblem, Unprocessable

_TAG = re.compile(r'^"(\d{1,9})"$')


def etag(revision: int) -> dict[str, str]:
    """The header for a thing in that revision."""
    return {"ETag": f'"{revision}"'}


def get_seen_revision(
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match",
            description="the ETag of what was read: 412 if it was changed since",
            examples=['"3"'],
        ),
    ] = None,
) -> int | None:
    """The revision that the request builds on; None where it takes whatever is there."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = _TAG.match(if_match.strip())
    if found is None:
        message = 'give the ETag of an earlier answer, with its quotes, for example "3"'
        raise Unprocessable(message, FieldProblem("If-Match", message, if_match))
    return int(found.group(1))


SeenRevision = Annotated[int | None, Depends(get_seen_revision)]
