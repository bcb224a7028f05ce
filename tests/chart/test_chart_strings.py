"""A string of the user stays a string, also if it looks like a number or a boolean."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import helm_python
import pytest
from jsonschema import Draft7Validator

from tests.chart.release import CHART, EXAMPLES, merged, render, values_of

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
# Without these, the chart creates what they would name.
EXISTING = ("existingSecret", "existingClaim", "name")
# Without these, the values of OpenID Connect that have no form are refused.
ISSUER, PAGE = "https://id.example.org", "https://cmcl.example.org/ui"
# Strings of YAML, whose own strings are compared.
INNER_YAML = ("serveConfigV2", "pods.yaml")


def with_text(value: Any, schema: Any, texts: tuple[str, str], kept_empty: tuple[str, ...]) -> Any:
    """The values with each string, and each list and map of strings, replaced by the first of the texts.

    Where the schema does not permit both texts, a value stays.
    """
    for form in _forms(value):
        validator = Draft7Validator({"definitions": SCHEMA["definitions"], "allOf": [schema]})
        if all(validator.is_valid(form(text)) for text in texts):
            return form(texts[0])
    if not isinstance(value, dict):
        return value
    schema = SCHEMA["definitions"].get(schema.get("$ref", "").rpartition("/")[2], schema)
    inner = dict.fromkeys(value, schema.get("additionalProperties"))
    inner |= schema.get("properties", {})
    return {
        key: child
        if not inner[key] or (key in kept_empty and not child)
        else with_text(child, inner[key], texts, kept_empty)
        for key, child in value.items()
    }


def _forms(value: Any) -> list[Callable[[str], Any]]:
    if isinstance(value, str):
        return [lambda text: text]
    if isinstance(value, list):
        return [lambda text: [text]]
    if isinstance(value, dict):
        return [lambda text: {text: text}, lambda text: {"X": text}]
    return []


def rendered(example: str, texts: tuple[str, str], kept_empty: tuple[str, ...]) -> dict[str, Any]:
    """Every value that the chart renders with the first text, by its path."""
    values = merged(values_of(example))
    values["access"]["oidc"]["issuer"] = ISSUER
    values["access"]["page"]["url"] = PAGE
    # Host names are among the strings, so both parts are exposed.
    for part in ("service", "serving"):
        values[part]["httpRoute"]["parentRefs"] = [{"name": "gateway"}]
    values["access"]["endpoint"]["open"] = not values["access"]["endpoint"]["publicKey"]
    values = with_text(values, SCHEMA, texts, kept_empty)
    # Names of alerts that exist.
    values["monitoring"]["prometheusRule"]["disabledAlerts"] = []
    text = texts[0]
    # A name must start with a letter.
    values["fullnameOverride"] = text if text.isalpha() else "cmcl"
    return dict(_leaves(render(values, name=text, namespace=text).objects, ""))


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if path.endswith(INNER_YAML):
        node = helm_python.values_from_yaml(node)
    if isinstance(node, list):
        node = dict(enumerate(node))
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _leaves(child, f"{path}/{key}")
    # A checksum differs with what is compared.
    elif "/checksum/" not in path:
        yield path, node


@pytest.mark.parametrize(
    ("text", "kept_empty"),
    [("2025", EXISTING), ("true", EXISTING[:1])],
    ids=["created", "existing"],
)
def test_a_string_that_looks_like_a_number_or_boolean_is_rendered_like_any_other(
    text: str, kept_empty: tuple[str, ...]
) -> None:
    word = f"x{text}x"
    for example in EXAMPLES:
        found = rendered(example, (text, word), kept_empty)
        others = {
            path.replace(word, text): value.replace(word, text) if isinstance(value, str) else value
            for path, value in rendered(example, (word, text), kept_empty).items()
        }
        assert text in found.values()
        assert found.items() ^ others.items() == set(), f"with the values of {example}"
