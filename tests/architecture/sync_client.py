"""The synchronous client, generated from the asynchronous one."""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from unasync import Rule, unasync_files

from tests.architecture.repository import ROOT

SOURCE = Path("cmcl/client/_async")
TARGET = Path("cmcl/client/_sync")
_NAMES = {
    "AbstractAsyncContextManager": "AbstractContextManager",
    "AsyncBaseTransport": "BaseTransport",
    "AsyncClient": "Client",
    "AsyncExitStack": "ExitStack",
    "AsyncSession": "Session",
    "_async": "_sync",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_bytes": "iter_bytes",
    "aiter_sse": "iter_sse",
    "anext": "next",
    "aread": "read",
    "async_call": "call",
    "async_file_content": "file_content",
    "async_sleep": "sleep",
    "enter_async_context": "enter_context",
}
_HEAD = "# Generated from {source} by `make docs`; edit that file.\n"


def sync_module(name: str) -> str:
    """The source of one module of the synchronous client."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, SOURCE, name)
        copy.parent.mkdir(parents=True)
        copy.write_text((ROOT / SOURCE / name).read_text())
        rule = Rule(f"/{SOURCE.name}/", f"/{TARGET.name}/", additional_replacements=_NAMES)
        unasync_files([str(copy)], [rule])
        made = Path(folder, TARGET, name)
        made.write_text(_HEAD.format(source=SOURCE / name) + made.read_text())
        ruff = [sys.executable, "-m", "ruff", "--quiet"]
        config = f"--config={ROOT / 'pyproject.toml'}"
        select = ["check", "--select=I", "--fix", config, f"--config=src=['{ROOT}']"]
        subprocess.run([*ruff, *select, str(made)], check=True)
        subprocess.run([*ruff, "format", config, str(made)], check=True)
        return made.read_text()


SYNC_MODULES = {
    str(TARGET / path.name): partial(sync_module, path.name)
    for path in sorted((ROOT / SOURCE).glob("*.py"))
}
