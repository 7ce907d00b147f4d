"""Parts of the reference page: texts of the contract, tables of fields, the type and bounds of a value in words.

Texts are CommonMark; HTML in them is shown, never obeyed. All else goes through :class:`Markup`, which escapes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from services.gateway.samples import Json

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
_LENGTHS = (("Length", "characters"), ("Items", "items"), ("Properties", "members"))
_ORDER = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
NOTHING = Markup("")


def introduction(text: str) -> tuple[Markup, list[tuple[str, str]]]:
    """The text as HTML, and its headings as (anchor, title)."""
    tokens = _MARKDOWN.parse(text)
    headings = []
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            id_ = anchor("about", inline.content)
            opening.attrSet("id", id_)
            headings.append((id_, inline.content))
    return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})), headings  # noqa: S704  no HTML passes


def prose(text: str) -> Markup:
    """A text of ours in CommonMark. What looks like HTML in it is shown, never obeyed."""
    return Markup(_MARKDOWN.render(text))  # noqa: S704  no HTML passes


def joined(parts: Iterable[Markup]) -> Markup:
    """The parts, one after the other."""
    return NOTHING.join(parts)


def anchor(kind: str, name: str) -> str:
    """The id of a part of the page: ``get-api-v1-health``, ``schema-Upload``."""
    return kind.lower() + "-" + re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-")


def members(schema: Json, place: str) -> Markup:
    """The table of an object's members; nothing for other schemas. ``place``: as in :func:`table`."""
    needed = schema.get("required", ())
    rows = [(name, place, member, name in needed) for name, member in schema.get("properties", {}).items()]
    return table(rows) if rows else NOTHING


def table(rows: Iterable[tuple[str, str, Json, bool]]) -> Markup:
    """Rows of (name, where it goes, schema, whether it must be given)."""
    row = Markup('<tr><td><code>{}</code>{}</td><td class="soft">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>')
    lines = joined(
        row.format(
            name,
            Markup(" <b>required</b>") if required else "",
            place,
            kind(schema),
            "; ".join(bounds(schema)),
            prose(schema.get("description", "")),
        )
        for name, place, schema, required in rows
    )
    return Markup(
        '<table class="fields"><thead><tr><th>Name</th><th>In</th><th>Type</th><th>Bounds</th><th>About</th></tr>'
        "</thead><tbody>{}</tbody></table>"
    ).format(lines)


def kind(schema: Json) -> Markup:
    """What a value is, in words, with links to schemas that have a name."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return Markup('<a href="#{}">{}</a>').format(anchor("schema", name), name)
    if "anyOf" in schema:
        return Markup(" or ").join(kind(part) for part in schema["anyOf"])
    kinds = schema.get("type", "any")
    words = []
    for one in [kinds] if isinstance(kinds, str) else kinds:
        if one == "array":
            words.append(Markup("list of ") + kind(schema["items"]))
        elif one == "object" and "additionalProperties" in schema and "properties" not in schema:
            words.append(Markup("map of ") + kind(schema["additionalProperties"]))
        elif one == "null":
            words.append(Markup("null"))
        else:
            words.append(Markup("{}{}").format(one, f" ({schema['format']})" if "format" in schema else ""))
    return Markup(" or ").join(words)


def bounds(schema: Json) -> Iterator[str]:
    """Each bound of a value, in words."""
    for keyword, sign in _ORDER:
        if keyword in schema:
            bound = schema[keyword]
            yield f"{sign} {f'{bound:g}' if isinstance(bound, float) else bound}"
    for ending, unit in _LENGTHS:
        least, most = schema.get(f"min{ending}", 0), schema.get(f"max{ending}")
        if most is not None:
            yield f"{least} to {most} {unit}" if most != least else f"{most} {unit}"
        elif least:
            yield f"at least {least} {unit}"
    if "pattern" in schema:
        yield f"matches {schema['pattern']}"
    if "const" in schema:
        yield f"is {schema['const']}"
    if "enum" in schema:
        yield "one of " + ", ".join(str(value) for value in schema["enum"])
    if schema.get("uniqueItems"):
        yield "no value twice"
    if schema.get("additionalProperties") is False:
        yield "no other members"
    for keyword, name in (("items", "each"), ("propertyNames", "names"), ("additionalProperties", "values")):
        inner: Any = schema.get(keyword)
        if isinstance(inner, Mapping):
            yield from (f"{name}: {bound}" for bound in bounds(inner))
