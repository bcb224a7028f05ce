"""Exit codes and error messages of commands. Errors are one line on stderr, without a traceback.

0    success
1    rejected or failed
2    usage error: an option or argument is missing, unknown or invalid
3    the followed job ended without a version
4    no server responds
130  Ctrl-C
143  ended by SIGTERM
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from pydantic import ValidationError
from rich.markup import escape

from cmcl.cli.console import stderr
from cmcl.client import CmclError, InvalidArgument, Unreachable
from cmcl.stack_host import StackError


class Exit(IntEnum):
    """Exit codes."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_VERSION = 3
    UNREACHABLE = 4
    INTERRUPTED = 130
    TERMINATED = 143


class CommandError(Exception):
    """A command failed on this machine. The message is for the user."""


class NoVersion(Exception):
    """The followed job ended without a version."""


_UNAUTHORIZED = 401


def run_command(command: Callable[[], None]) -> int:
    """Run a command and return its exit code."""
    try:
        with _cleanup_after_sigterm():
            command()
    except SystemExit as error:
        if error.code is None:
            return Exit.OK
        return error.code if isinstance(error.code, int) else Exit.FAILED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe. Redirect stdout so that the final flush does not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.OK
    except Exception as error:  # noqa: BLE001 - the outermost handler
        print_error(error)
        return exit_code(error)
    return Exit.OK


@contextmanager
def _cleanup_after_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that temporary files are removed. Commands may set a handler of their own."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(Exit.TERMINATED)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def print_error(error: Exception) -> None:
    """Print one line on stderr, and with CMCL_DEBUG the traceback."""
    stderr().print(
        f"[red]error[/red]: {escape(error_message(error))}", highlight=False, soft_wrap=True
    )
    if os.environ.get("CMCL_DEBUG"):
        stderr().print(escape("".join(traceback.format_exception(error))), highlight=False)


def exit_code(error: Exception) -> Exit:
    """Return the exit code of an error."""
    if isinstance(error, Unreachable):
        return Exit.UNREACHABLE
    if isinstance(error, ValidationError | InvalidArgument):
        # Invalid options and arguments. Responses of an unexpected form are other CmclErrors.
        return Exit.USAGE
    return Exit.NO_VERSION if isinstance(error, NoVersion) else Exit.FAILED


def error_message(error: Exception) -> str:
    """Format an error as one line."""
    if isinstance(error, CmclError):
        return _with_request(error)
    if isinstance(error, ValidationError):
        parts = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
        messages = [what.removeprefix("Value error, ") for _, what in parts]
        return "; ".join(
            f"{where}: {what}" if where else what
            for (where, _), what in zip(parts, messages, strict=True)
        )
    if isinstance(error, CommandError | NoVersion | StackError | OSError):
        return str(error)
    return f"internal error in cmcl, please report it: {error!r} (CMCL_DEBUG=1 shows the traceback)"


def _with_request(error: CmclError) -> str:
    """Add the request id for the server's log, or how to set a key."""
    if error.status == _UNAUTHORIZED:
        if os.environ.get("CMCL_KEY"):
            return f"{error} (the key is set by CMCL_KEY)"
        return "a key is required: export CMCL_KEY=cmcl_... (create one with `cmcl key create`)"
    if error.status >= 500 and error.request_id:
        return f"{error} (request {error.request_id})"
    return str(error)
