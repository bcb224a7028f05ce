"""Hooks of mkdocs: pages stay as they are read in a repository, and become a site that works offline.

- Links that leave docs/ lead to copies of these files, under `source/`.
- README.md is the first page.
- openapi.json and openapi-embeddings.json become pages.
- Lists and tables that follow a line of text get the blank line that Python-Markdown needs.

`make docs-site` builds it; a link without a target is an error.
"""

import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]

_FENCE = re.compile(r"(^```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_ATTRIBUTE = re.compile(r'(\b(?:src|srcset|href)=")([^"]+)(")')
_FOREIGN_SCRIPT = re.compile(r'<script src="https://[^"]*"></script>')
_ITEM = re.compile(r"(-|\*|\d+\.) ")

# Page of the site: file of the repository.
_origins: dict[str, str] = {}


def on_files(files: Any, config: Any) -> Any:
    """Add the first page, the pages of both APIs, and copies of files outside docs/ that pages link to."""
    _origins.clear()
    _add(files, config, "index.md", "README.md")
    for name, title in (
        ("openapi", "REST API of the control plane"),
        ("openapi-embeddings", "REST API of the embeddings endpoint"),
    ):
        document = json.loads((ROOT / "docs" / f"{name}.json").read_text())
        page = f"{name.replace('openapi', 'api')}.md"
        files.append(File.generated(config, page, content="\n".join(api_page(title, document))))
    pages = (ROOT / "docs").rglob("*.md")
    texts = [(path.relative_to(ROOT).as_posix(), path.read_text()) for path in pages]
    texts.append(("README.md", (ROOT / "README.md").read_text()))
    while texts:
        origin, text = texts.pop()
        for target in _outside(origin, text):
            page = _site_path(target)
            if page not in _origins:
                texts.append((target, _add(files, config, page, target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links to the pages of the site, and separate lists and tables from the line above."""
    site = page.file.src_uri
    origin = _origins.get(site, f"docs/{site}")

    def moved(found: re.Match[str]) -> str:
        before, target, after = found.groups()
        return before + _moved(origin, site, target) + after

    return _outside_fences(markdown, lambda text: _spaced(_rewritten(text, moved)))


def on_post_page(output: str, **_: Any) -> str:
    """Load nothing from another host: without this script, only the search needs a server."""
    return _FOREIGN_SCRIPT.sub("", output)


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for pages that are no documents, such as that for a missing one."""
    return on_post_page(output_content)


def _rewritten(text: str, moved: Callable[[re.Match[str]], str]) -> str:
    return _ATTRIBUTE.sub(moved, _LINK.sub(moved, text))


def _add(files: Any, config: Any, page: str, source: str) -> str:
    """Add a file of the repository; return its text if it is a page, whose links are followed too."""
    _origins[page] = source
    path = ROOT / source
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir() if not each.name.startswith((".", "_")))
        listed = "\n".join(f"- `{name}`" for name in names)
        files.append(File.generated(config, page, content=f"# {source}\n\n{listed}\n"))
        return ""
    files.append(File.generated(config, page, content=path.read_bytes()))
    return path.read_text() if path.suffix == ".md" else ""


def _outside(origin: str, text: str) -> Iterator[str]:
    """Files that a page links to and that are not below docs/."""
    for part in _FENCE.split(text)[::2]:
        for _, target, _ in [*_LINK.findall(part), *_ATTRIBUTE.findall(part)]:
            path = _resolved(origin, target)
            is_ours = path is not None and (path == "README.md" or path.startswith("docs/"))
            if path is not None and not is_ours and (ROOT / path).exists():
                yield path


def _resolved(origin: str, target: str) -> str | None:
    """Path in the repository; None if the target is an address, or a place in the same page."""
    if "://" in target or target.startswith(("#", "mailto:")):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target.partition("#")[0]))


def _site_path(path: str) -> str:
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    # mkdocs leaves out what begins with a dot.
    inner = f"source/{path.lstrip('.')}"
    return f"{inner}/index.md" if (ROOT / path).is_dir() else inner


def _moved(origin: str, site: str, target: str) -> str:
    path = _resolved(origin, target)
    if path is None:
        return target
    _, hash_sign, place = target.partition("#")
    relative = posixpath.relpath(_site_path(path), posixpath.dirname(site) or ".")
    return f"{relative}{hash_sign}{place}"


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    parts = _FENCE.split(markdown)
    parts[::2] = map(change, parts[::2])
    return "".join(parts)


def _spaced(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        before = lines[-1] if lines else ""
        starts_list = _ITEM.match(line) and not _ITEM.match(before) and not before.startswith(" ")
        starts_table = line.startswith("|") and not before.startswith("|")
        if before and (starts_list or starts_table):
            lines.append("")
        lines.append(line)
    return "\n".join(lines) + ("\n" if text.endswith("\n") else "")


def api_page(title: str, document: dict[str, Any]) -> Iterator[str]:
    """A page of an OpenAPI document: its operations by tag, and its objects."""
    yield f"# {title}\n"
    yield f"Generated from the OpenAPI document of version {document['info']['version']}.\n"
    for tag, operations in _by_tag(document).items():
        yield f"## {tag.capitalize()}\n"
        for method, path, operation in operations:
            yield from _operation(method, path, operation)
    yield "## Objects\n"
    for name, schema in sorted(document.get("components", {}).get("schemas", {}).items()):
        yield from _object(name, schema)


def _by_tag(document: dict[str, Any]) -> dict[str, list[tuple[str, str, dict[str, Any]]]]:
    found: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if isinstance(operation, dict) and "responses" in operation:
                tag = (operation.get("tags") or ["other"])[0]
                found.setdefault(tag, []).append((method.upper(), path, operation))
    return found


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### {method} `{path}`\n"
    yield f"{_text(operation.get('description') or operation.get('summary', ''))}\n"
    parameters = [each for each in operation.get("parameters", []) if "name" in each]
    if parameters:
        yield "| parameter | in | type | meaning |\n|---|---|---|---|"
        for each in parameters:
            kind = _kind(each.get("schema", {}))
            meaning = _text(each.get("description", "")) or (
                "required" if each.get("required") else ""
            )
            yield f"| `{each['name']}` | {each['in']} | {kind} | {meaning} |"
        yield ""
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        kinds = ", ".join(
            f"{_kind(each.get('schema', {}))} as `{form}`" for form, each in body.items()
        )
        yield f"Body: {kinds}.\n"
    answers = [
        f"`{status}` {_answer(answer)}" for status, answer in sorted(operation["responses"].items())
    ]
    yield f"Responses: {'; '.join(answers)}.\n"


def _answer(answer: dict[str, Any]) -> str:
    kinds = {_kind(each.get("schema", {})) for each in answer.get("content", {}).values()}
    return ", ".join(sorted(kinds - {""})) or _text(answer.get("description", "")).rstrip(".")


def _object(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    if schema.get("description"):
        yield f"{_text(schema['description'])}\n"
    if "enum" in schema:
        yield f"One of {', '.join(f'`{value}`' for value in schema['enum'])}.\n"
    properties = schema.get("properties", {})
    if properties:
        required = set(schema.get("required", []))
        yield "| field | type | default | meaning |\n|---|---|---|---|"
        for field, each in properties.items():
            default = "required" if field in required else f"`{json.dumps(each.get('default'))}`"
            yield f"| `{field}` | {_kind(each)} | {default} | {_text(each.get('description', ''))} |"
        yield ""


def _kind(schema: dict[str, Any]) -> str:
    """The type of a value, with a link to the object that it refers to."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            kinds = dict.fromkeys(_kind(each) for each in schema[several])
            return " or ".join(kind for kind in kinds if kind)
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {})) or 'values'}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_kind(schema['additionalProperties']) or 'values'}"
    return str(schema.get("type", ""))


def _text(text: str) -> str:
    """Text for a cell of a table, in which brackets and bars are no markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
