"""How a command ends: its exit code, and one line on stderr. No traceback reaches a user.

0    done
1    refused, or failed: the line says by whom and why
2    wrong usage: an option or argument is missing, unknown or cannot be
3    the job that was followed ended without a version
4    no server answers
130  Ctrl-C
"""

import os
import traceback
from collections.abc import Callable
from enum import IntEnum

from pydantic import ValidationError
from rich.markup import escape

from cmcl.cli.console import stderr
from cmcl.client import CmclError, InvalidArgument, Unreachable
from cmcl.ports import StackError


class Exit(IntEnum):
    """Exit codes."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    NO_VERSION = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


class Refused(Exception):
    """Something on this side that cannot go on, in words for a user."""


class NoVersion(Exception):
    """A job that was followed ended without a version."""


_UNAUTHORIZED = 401


def ended(run: Callable[[], None]) -> int:
    """Run a command; answers its exit code."""
    try:
        run()
    except SystemExit as error:
        if error.code is None:
            return Exit.DONE
        return error.code if isinstance(error.code, int) else Exit.REFUSED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is left must not be flushed at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.DONE
    except Exception as error:  # noqa: BLE001 - the outermost edge: whatever it is, a user reads it
        tell(error)
        return exit_code(error)
    return Exit.DONE


def tell(error: Exception) -> None:
    """One line on stderr; with CMCL_DEBUG set, where it comes from as well."""
    stderr().print(f"[red]error[/red]: {escape(in_words(error))}", highlight=False, soft_wrap=True)
    if os.environ.get("CMCL_DEBUG"):
        stderr().print(escape("".join(traceback.format_exception(error))), highlight=False)


def exit_code(error: Exception) -> Exit:
    """By the kind of error."""
    if isinstance(error, Unreachable):
        return Exit.UNREACHABLE
    if isinstance(error, ValidationError | InvalidArgument):
        # Options and arguments that cannot be used; answers of another form are other CmclErrors.
        return Exit.USAGE
    return Exit.NO_VERSION if isinstance(error, NoVersion) else Exit.REFUSED


def in_words(error: Exception) -> str:
    """One line; of pydantic's report, what a user can act on."""
    if isinstance(error, CmclError):
        return _with_request(error)
    if isinstance(error, ValidationError):
        parts = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
        words = [what.removeprefix("Value error, ") for _, what in parts]
        return "; ".join(
            f"{where}: {what}" if where else what
            for (where, _), what in zip(parts, words, strict=True)
        )
    if isinstance(error, Refused | NoVersion | StackError | OSError):
        return str(error)
    return f"internal error in cmcl, please report it: {error!r} (CMCL_DEBUG=1 shows the traceback)"


def _with_request(error: CmclError) -> str:
    """The message, with the request's id for the log of the server, or how to give a key."""
    if error.status == _UNAUTHORIZED:
        if os.environ.get("CMCL_KEY"):
            return f"{error} (the key is that of CMCL_KEY)"
        return "a key is needed: export CMCL_KEY=cmcl_... (cmcl key create makes one)"
    if error.status >= 500 and error.request_id:
        return f"{error} (request {error.request_id})"
    return str(error)
