"""The page at /docs: all that the OpenAPI document has, safe to show, with examples that work as they are."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from html.parser import HTMLParser
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator

from services.gateway import contract, openapi, reference, routes
from services.gateway.samples import Samples

BINDINGS = routes.bindings(contract.services())
DOCUMENT = openapi.document(BINDINGS, contract.comments())
PAGE = reference.page(DOCUMENT).decode()
OPERATIONS = [
    pytest.param(verb.upper(), path, operation, id=operation["operationId"])
    for path, operations in DOCUMENT["paths"].items()
    for verb, operation in operations.items()
]
VOID = {"meta", "br", "hr"}


class Reader(HTMLParser):
    """What a browser sees: ids, links, and texts by the section they are in. Fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.sections: dict[str, str] = {}
        self.curls: dict[str, str] = {}
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs), attrs
        self.tags.add(tag)
        self.attributes |= set(given)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if "href" in given else []
        if tag not in VOID:
            self._open.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        if tag in {"p", "h3", "pre", "td", "summary"}:
            self.handle_data("\n")
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        section = next((a["id"] or "" for tag, a in self._open if tag == "section"), "")
        self.sections[section] = self.sections.get(section, "") + data
        if self._open and self._open[-1][1].get("class") == "curl":
            self.curls[section] = self.curls.get(section, "") + data.strip()

    def section(self, operation_id: str) -> str:
        """The id of the section of an operation."""
        (found,) = (i for i, text in self.sections.items() if re.search(rf"operationId {operation_id}\b", text))
        return found


READER = Reader(PAGE)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_an_operation_has_its_path_parameters_statuses_and_a_line_that_calls_it(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    section = READER.section(operation["operationId"])
    text = READER.sections[section]
    assert f"#{section}" in READER.links
    assert text.startswith(f"{method} {path}")
    for status in operation["responses"]:
        assert re.search(rf"\b{status}\b", text), status
    if method != "HEAD" or "get" not in DOCUMENT["paths"][path]:
        assert all(parameter["name"] in text for parameter in operation.get("parameters", ()))
        assert all(f"HTTP/1.1 {status} " in text for status in operation["responses"])
    words = shlex.split(READER.curls[section])
    assert words[0] == "curl"
    asked = "HEAD" if "--head" in words else words[words.index("-X") + 1] if "-X" in words else "GET"
    address = words[-1].removeprefix("$BASE").partition("?")[0]
    assert (asked, address) == (method, re.sub(r"\{(\w+)\}", r"$\1", path))
    open_to_all = {} in operation.get("security", DOCUMENT["security"])
    assert ("Authorization: Bearer $TOKEN" in words) is not open_to_all


def test_every_example_fits_its_schema() -> None:
    samples = Samples(DOCUMENT)
    for name, schema in DOCUMENT["components"]["schemas"].items():
        OAS31Validator({"components": DOCUMENT["components"], **schema}).validate(samples.value(schema, name))
    for operations in DOCUMENT["paths"].values():
        for parameter in (p for operation in operations.values() for p in operation.get("parameters", ())):
            value = parameter.get("example", samples.value(parameter["schema"], parameter["name"]))
            schema = {"components": DOCUMENT["components"], **parameter["schema"]}
            OAS31Validator(schema).validate(value)


def test_the_page_is_whole_and_brings_nothing_from_elsewhere() -> None:
    assert len(READER.ids) == len(set(READER.ids))
    assert {link[1:] for link in READER.links if link.startswith("#")} <= set(READER.ids)
    schemas = {f"schema-{name}" for name in DOCUMENT["components"]["schemas"]}
    assert schemas <= set(READER.ids)
    assert not READER.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "svg"}
    assert not READER.attributes & {"src", "style"}
    assert not [name for name in READER.attributes if name.startswith("on")]
    assert "url(" not in reference.STYLE
    assert "@import" not in reference.STYLE
    assert {"about-Errors", "about-Sending-again", "about-Uploads-in-chunks", "about-Playing"} <= set(READER.ids)


def test_the_policy_lets_the_style_of_the_page_through_and_nothing_else() -> None:
    (style,) = re.findall("<style>(.*?)</style>", PAGE, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = reference.HEADERS["Content-Security-Policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy
    assert "*" not in policy


def test_texts_of_the_contract_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script> [x](javascript:alert(1)) ![y](https://a.test/y.png) `<b>` \"'><img src=x>"
    comments = dict.fromkeys(contract.comments(), evil)
    document = openapi.document(BINDINGS, comments)
    document["info"] |= {"title": evil, "summary": evil, "description": f"## {evil}\n\n{evil}"}
    read = Reader(reference.page(document).decode())
    assert not read.tags & {"script", "img"}
    assert not [link for link in read.links if not link.startswith(("#", "/", "https://"))]
    assert "<script>alert(1)</script>" in read.sections["schema-Upload"]
