"""GET /docs: the OpenAPI document as one page for people, made at the start.

It works offline and runs nothing: no script, no picture, one style whose digest the policy names. :class:`Markup`
escapes whatever is put into it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from importlib.resources import files

from markupsafe import Markup

from services.gateway import markup, problems
from services.gateway.samples import Json, Samples

STYLE = files("services.gateway").joinpath("reference.css").read_text()
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox"
}


def page(document: Json) -> bytes:
    """The page in UTF-8."""
    return _Page(document).whole().encode(errors="replace")


class _Page:
    def __init__(self, document: Json) -> None:
        self._document = document
        self._samples = Samples(document)
        self._by_tag: dict[str, list[tuple[str, str, Json]]] = {tag["name"]: [] for tag in document["tags"]}
        for path, operations in document["paths"].items():
            for verb, operation in operations.items():
                self._by_tag[operation["tags"][0]].append((verb.upper(), path, operation))

    def whole(self) -> Markup:
        info = self._document["info"]
        introduction, headings = markup.introduction(info["description"])
        return Markup(
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
            "<body><header><h1>{title}</h1><p>{summary}. For programs: "
            '<a href="/openapi.json">/openapi.json</a> (OpenAPI {version}).</p></header>'
            "<nav><h2>Contents</h2>{contents}</nav><main>{introduction}{tags}{schemas}</main></body></html>\n"
        ).format(
            title=info["title"],
            style=Markup(STYLE),  # noqa: S704  our own file
            summary=info["summary"],
            version=self._document["openapi"],
            contents=self._contents(headings),
            introduction=introduction,
            tags=markup.joined(self._tag(tag) for tag in self._document["tags"]),
            schemas=self._schemas(),
        )

    def _contents(self, headings: Iterable[tuple[str, str]]) -> Markup:
        line, entry = Markup('<li><a href="#{}">{}</a></li>'), Markup('<li><a href="#{}">{}</a><ul>{}</ul></li>')
        operation = Markup('<li><a href="#{}"><b class="{verb}">{verb}</b> <code>{}</code></a></li>')
        tags = markup.joined(
            entry.format(
                markup.anchor("tag", name),
                name,
                markup.joined(
                    operation.format(markup.anchor(v, p), p, verb=v) for v, p, _ in found if v != "HEAD"
                ),
            )
            for name, found in self._by_tag.items()
        )
        titles = markup.joined(line.format(*heading) for heading in headings)
        return Markup("<ul>{}{}{}</ul>").format(titles, tags, line.format("schemas", "Schemas"))

    def _tag(self, tag: Json) -> Markup:
        operations = markup.joined(self._operation(*found) for found in self._by_tag[tag["name"]])
        return Markup('<h2 id="{}">{}</h2>{}{}').format(
            markup.anchor("tag", tag["name"]), tag["name"], markup.prose(tag.get("description", "")), operations
        )

    def _operation(self, verb: str, path: str, operation: Json) -> Markup:
        permission = self._permission(operation)
        beside = self._document["paths"][path]
        if verb == "HEAD" and "get" in beside:
            link = Markup('<p>As <a href="#{}">GET</a>, without the content.</p>').format(
                markup.anchor("GET", path)
            )
            statuses = ", ".join(operation["responses"])
            about = link + Markup("<p>Statuses: {}</p>").format(statuses)
        else:
            about = self._about(path, operation)
        return Markup(
            '<section class="operation" id="{id}"><h3><a href="#{id}"><b class="{verb}">{verb}</b> '
            '<code>{path}</code></a></h3><p class="soft">{permission} · operationId <code>{name}</code></p>'
            '{prose}<pre class="curl">{curl}</pre>{about}</section>'
        ).format(
            id=markup.anchor(verb, path),
            verb=verb,
            path=path,
            permission=permission,
            name=operation["operationId"],
            prose=markup.prose(operation["summary"]) + markup.prose(operation.get("description", "")),
            curl=self._samples.curl(verb, path, operation),
            about=about,
        )

    def _permission(self, operation: Json) -> str:
        """What a request must have, in words."""
        if self._samples.is_open(operation):
            return "Needs no token"
        ways = operation.get("security", self._document["security"])
        scopes = [scope for way in ways for scope in way.get("bearer", ())]
        token = f"Needs a token with the scope {scopes[0]}" if scopes else "Needs a token"
        return f"{token}, or the signature of a streaming_url in the query" if {"signed": []} in ways else token

    def _about(self, path: str, operation: Json) -> Markup:
        """Parameters, body and answers."""
        parts = []
        if parameters := operation.get("parameters"):
            rows = (
                (p["name"], p["in"], p["schema"] | {k: p[k] for k in ("description",) if k in p}, p["required"])
                for p in parameters
            )
            parts.append(Markup("<h4>Parameters</h4>{}").format(markup.table(rows)))
        if body := operation.get("requestBody"):
            parts.append(self._body(body))
        answers = markup.joined(
            self._answer(s, self._samples.resolve(r), path) for s, r in operation["responses"].items()
        )
        return markup.joined([*parts, Markup("<h4>Answers</h4>{}").format(answers)])

    def _body(self, body: Json) -> Markup:
        content = body["content"]
        needed = "" if body.get("required") else ", may be left out"
        parts = [Markup("<h4>Body{}: {}</h4>").format(needed, ", ".join(content))]
        shown: list[Json] = []
        for media in content.values():
            schema = media.get("schema")
            if schema is None or schema in shown:
                continue
            shown.append(schema)
            parts.append(Markup('<p class="soft">{}</p>').format(markup.kind(schema)))
            parts.append(markup.members(self._samples.resolve(schema), "body"))
        if "application/json" in content:
            value = self._samples.text(content["application/json"]["schema"])
            parts.append(Markup("<pre>{}</pre>").format(value))
        return markup.joined(parts)

    def _answer(self, status: str, response: Json, path: str) -> Markup:
        content = [
            Markup("<code>{}</code>{}").format(
                kind, Markup(" ") + markup.kind(media["schema"]) if "schema" in media else ""
            )
            for kind, media in response.get("content", {}).items()
        ]
        return Markup("<details><summary><b>{}</b> {} · {}</summary><p>{}</p><pre>{}</pre></details>").format(
            status,
            problems.title(int(status)),
            response["description"],
            Markup(", ").join(content) or "No content.",
            self._samples.answer(status, response, path),
        )

    def _schemas(self) -> Markup:
        section = Markup(
            '<section class="schema" id="{id}"><h3><a href="#{id}">{name}</a></h3>{prose}{kind}{members}</section>'
        )
        return Markup('<h2 id="schemas">Schemas</h2>') + markup.joined(
            section.format(
                id=markup.anchor("schema", name),
                name=name,
                prose=markup.prose(schema.get("description", "")),
                kind=markup.NOTHING
                if "properties" in schema
                else Markup("<p>{} {}</p>").format(markup.kind(schema), "; ".join(markup.bounds(schema))),
                members=markup.members(schema, ""),
            )
            for name, schema in self._document["components"]["schemas"].items()
        )
