"""Tasks and decoders for a child process in tests. Some crash it."""

import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import Frozen
from workers.sandbox.child_process import DONE, FrameWriter, write_frame


class Order(Frozen):
    """The name of what a task does, and a number for it."""

    does: str = "nothing"
    number: int = 0
    path: str = ""


def work(request: Order, output: FrameWriter) -> None:
    """Do what the request says, as one step."""
    output.step(f"doing {request.does}")
    _ACTIONS[request.does](request, output)


def _echo(request: Order, output: FrameWriter) -> None:
    for number in range(request.number):
        output.send({"number": number}, [b"a" * number, b"b" * number])


def _print(request: Order, output: FrameWriter) -> None:
    print("what a library prints is no frame")
    output.send({"environment": sorted(os.environ), "pid": os.getpid()})


def _allocate(request: Order, output: FrameWriter) -> None:
    bytearray(request.number)


_KEPT: list[bytes] = []


def _keep(request: Order, output: FrameWriter) -> None:
    _KEPT.append(b"x" * (300 << 20))


def _spin(request: Order, output: FrameWriter) -> None:
    output.step("spinning", float(request.number))
    while True:
        pass


def _sleep(request: Order, output: FrameWriter) -> None:
    output.send({"pid": os.getpid()})
    time.sleep(3600)


def _refuse(request: Order, output: FrameWriter) -> None:
    raise InvalidDataset("s3://a/b: it is damaged")


def _fail(request: Order, output: FrameWriter) -> None:
    raise KeyError("a bug")


def _crash(request: Order, output: FrameWriter) -> None:
    os.kill(os.getpid(), request.number)


def _crash_once(request: Order, output: FrameWriter) -> None:
    """Crash if this is the first time for this path."""
    path = Path(request.path)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    (output.folder / "left").touch()
    output.send({"files": [entry.name for entry in output.folder.iterdir()]})


def _forge(request: Order, output: FrameWriter) -> None:
    """A frame that announces an impossible length."""
    output._file.write(b"\xff" * 8)
    time.sleep(3600)


_ACTIONS = {
    "nothing": lambda request, output: None,
    "echo": _echo,
    "print": _print,
    "allocate": _allocate,
    "keep": _keep,
    "spin": _spin,
    "sleep": _sleep,
    "refuse": _refuse,
    "fail": _fail,
    "crash": _crash,
    "crash once": _crash_once,
    "forge": _forge,
}


def decode_or_crash(spec: EncoderSpec, raw: bytes) -> str:
    """Decode texts. Some of them end the process, or take all of its time or memory."""
    text = raw.decode()
    word, _, rest = text.partition(" ")
    if word in _DECODERS:
        _DECODERS[word](rest)
    return text


def _kill_once(path: str) -> None:
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _refuse_text(rest: str) -> None:
    raise ValueError("the text is refused")


def _meet_a_bug(rest: str) -> None:
    raise KeyError("deep in a library")


def _send_as_if_done(rest: str) -> None:
    """Report that the task is done, as a parser that was taken over could."""
    (writer,) = (each for each in gc.get_objects() if isinstance(each, FrameWriter))
    write_frame(writer._file, {DONE: True})
    time.sleep(3600)


def _send_no_items(row: str) -> None:
    """Send a row as if its items had been sent before, as a parser that was taken over could."""
    (writer,) = (each for each in gc.get_objects() if isinstance(each, FrameWriter))
    write_frame(writer._file, {"row": int(row), "items": [None, None]})
    time.sleep(3600)


_DECODERS: dict[str, Callable[[str], object]] = {
    "segfault": lambda rest: os.kill(os.getpid(), signal.SIGSEGV),
    "once": _kill_once,
    "exit": lambda rest: os._exit(7),
    "sleep": lambda rest: time.sleep(3600),
    "allocate": lambda rest: bytearray(64 << 30),
    "refuse": _refuse_text,
    "bug": _meet_a_bug,
    "lie": _send_as_if_done,
    "withhold": _send_no_items,
}
