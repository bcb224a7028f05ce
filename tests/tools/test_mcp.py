"""examples/recipes/mcp_server.py with a real MCP client, over stdin and stdout."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.served_app import served
from tests.tools.conftest import RECIPES, Commands
from tests.unit.serve.collections.conftest import opened

CONVERSATION = """
import asyncio, json, os, sys
from mcp import Client, StdioServerParameters

async def talk(server):
    async with Client(server) as session:
        tools = (await session.list_tools()).tools
        said = {"tools": {tool.name: tool.annotations.read_only_hint for tool in tools}}
        for name, arguments in json.loads(sys.argv[2]):
            answer = await session.call_tool(name, arguments)
            said[json.dumps([name, arguments])] = [answer.is_error, "".join(each.text for each in answer.content)]
        return said

async def main():
    command = [sys.argv[3] + "/mcp_server.py", "things"]
    parameters = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))
    print(json.dumps(await talk(parameters)))

asyncio.run(main())
"""
WORDS = {"aaa": "vowel", "eee": "vowel", "zzz": "consonant"}


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A replica with a collection of texts."""
    with opened(FlakyStore(LocalStore(tmp_path / "store"))) as replica:
        items = [
            {"id": word, "modality": "text", "text": word, "payload": {"kind": kind}}
            for word, kind in WORDS.items()
        ]
        replica.add("things", items)
        assert replica.ask("PUT", "/hidden", {"model": "scenes"}).status_code == 200
        with served(replica.app) as url:
            yield url


def test_an_assistant_lists_and_searches_and_changes_nothing(
    targets: Path, url: str, tmp_path: Path
) -> None:
    wanted = {"field": "kind", "equals": "consonant"}
    calls: list[tuple[str, dict[str, object]]] = [
        ("list_collections", {}),
        ("search", {"name": "things", "text": "eee", "top_k": 2}),
        ("search", {"name": "things", "text": "eee", "where": wanted}),
        ("search", {"name": "hidden", "text": "eee"}),
        ("search", {"name": "things", "text": "eee", "top_k": 1000}),
        ("search", {"name": "things", "data": "not base64", "modality": "image"}),
    ]
    commands = Commands(targets, tmp_path, url)
    said = json.loads(commands.python_output(CONVERSATION, url, json.dumps(calls), str(RECIPES)))
    names = {"list_collections": True, "search": True}
    assert said.pop("tools") == names
    listed, found, filtered, hidden, many, damaged = said.values()
    assert "things" in listed[1]
    assert "hidden" not in listed[1]
    assert '"kind"' in listed[1]
    assert '"id": "eee"' in found[1]
    assert '"id": "zzz"' in filtered[1]
    assert '"id": "eee"' not in filtered[1]
    assert "permitted: things" in hidden[1]
    assert [each[0] for each in (listed, found, hidden, many, damaged)] == [
        *(False, False),
        *(True, True, True),
    ]
