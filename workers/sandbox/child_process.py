"""The bounded process itself: `python -m workers.sandbox.child_process PARENT_PID MODULE...`.

It imports the modules, reports that it is ready, and reads tasks from standard input. A task is a function,
named by module and name, with a pydantic model as its request. It ends with its parent.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, get_type_hints

from pydantic import BaseModel

from workers.sandbox.frames import (
    DONE,
    ERROR,
    READY,
    FrameWriter,
    read_frame,
    write_frame,
)
from workers.sandbox.limits import bound_cpu, bound_memory, end_with

Task = Callable[[Any, FrameWriter], None]


def named_function(name: str) -> Callable[..., Any]:
    """The function `module:function`."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def name_of(function: Callable[..., Any]) -> str:
    """`module:function` of a top-level function."""
    return f"{function.__module__}:{function.__qualname__}"


def main(parent: int, modules: Sequence[str]) -> int:
    """Run tasks until standard input ends."""
    end_with(parent)
    output = _reserve_output()
    for module in modules:
        importlib.import_module(module)
    write_frame(output, {READY: True})
    is_bounded = False
    while frame := read_frame(sys.stdin.buffer):
        order = frame.header
        if not is_bounded:
            bound_memory(order["memory"])
            is_bounded = True
        bound_cpu(order["seconds"])
        writer = FrameWriter(output, Path(order["folder"]))
        write_frame(output, _result(order["task"], bytes(frame.body), writer))
    return 0


def _result(task: str, request: bytes, writer: FrameWriter) -> dict[str, Any]:
    try:
        function: Task = named_function(task)
        function(_request_type(function).model_validate_json(request), writer)
    except Exception as error:  # noqa: BLE001
        # The parent maps the error; the traceback goes to its log. Without memory there is no traceback: from
        # Python 3.13 on, printing one parses the source, and a failure there would hide this error.
        if not isinstance(error, MemoryError):
            traceback.print_exc()
        return {ERROR: type(error).__name__, "message": str(error)[:10_000]}
    return {DONE: True}


def _request_type(function: Task) -> type[BaseModel]:
    """The type of the first parameter."""
    hints = get_type_hints(function)
    first: type[BaseModel] = next(iter(hints.values()))
    return first


def _reserve_output() -> BinaryIO:
    """Standard output, for frames alone: what libraries print goes to standard error."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return output


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
