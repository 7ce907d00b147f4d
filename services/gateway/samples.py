"""Examples for the reference page: a value for a schema, a curl line for an operation, the text of an answer.

All of them follow from the OpenAPI document, so they cannot be out of date. A schema's own ``examples`` come
first; where it has none, the value is the smallest that fits, and texts go by what the field is called.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from services.gateway import problems

Json = Mapping[str, Any]
_UUID = "3f2b8c1e-6d47-4a59-9c0e-7b1d2e5f8a34"
_HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_FORMATS = {"uuid": _UUID, "date-time": "2026-07-01T12:00:00Z", "uri": "urn:example:text"}
_NAMES = (  # the ends of names → what such a text looks like
    ("_id", _UUID),
    ("hash", _HASH),
    ("sha256", _HASH),
    ("upload_url", f"/api/v1/challenge-videos/upload/{_UUID}/chunk"),
    ("posters", f"/api/v1/media/stream/{_UUID}/posters/0.jpg"),
    ("image_url", f"/api/v1/media/stream/{_UUID}/storyboard.jpg"),
    ("vtt_url", f"/api/v1/media/stream/{_UUID}/storyboard.vtt"),
    ("hls_url", f"/api/v1/media/stream/{_UUID}/hls.m3u8"),
    ("_url", f"/api/v1/media/stream/{_UUID}"),
    ("filename", "clip.mp4"),
    ("mime_type", "video/mp4"),
)
_MOST_NESTED = 8
_FORM, _JSON, _ANY = "multipart/form-data", "application/json", "*/*"
_REASON = re.compile(r"\b[A-Z]+(?:_[A-Z]+)*_?[A-Z]{3,}\b")


class Samples:
    """Examples for one OpenAPI document."""

    def __init__(self, document: Json) -> None:
        self._components: Json = document["components"]
        self._security = document["security"]

    def resolve(self, part: Json) -> Json:
        """What a reference into the components is about; anything else as it is."""
        if "$ref" not in part:
            return part
        kind, name = part["$ref"].split("/")[-2:]
        found: Json = self._components[kind][name]
        return found

    def value(self, schema: Json, name: str = "", depth: int = 0) -> Any:
        """A value that fits the schema."""
        schema = {**self.resolve(schema), **schema}
        given = schema.get("examples") or schema.get("enum") or ([schema["const"]] if "const" in schema else [])
        if given:
            return given[0]
        if "anyOf" in schema:
            return self.value(schema["anyOf"][0], name, depth) if depth < _MOST_NESTED else None
        kinds = schema.get("type", "string")
        match kinds if isinstance(kinds, str) else kinds[0]:
            case "object":
                # A message may hold itself.
                found: Any = dict(self._members(schema, depth)) if depth < _MOST_NESTED else {}
            case "array":
                least = schema.get("minItems", 0) or int(depth < _MOST_NESTED)
                found = [self.value(schema["items"], name, depth + 1)] * least
            case "boolean":
                found = False
            case "integer" | "number" as kind:
                least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
                found = int(least) if kind == "integer" else float(least)
            case _:
                found = _text(schema, name)
        return found

    def text(self, schema: Json) -> str:
        """A value that fits the schema as JSON for people."""
        return json.dumps(self.value(schema), ensure_ascii=False, indent=2)

    def _members(self, schema: Json, depth: int) -> Iterator[tuple[str, Any]]:
        needed = schema.get("required", ())
        for name, member in schema.get("properties", {}).items():
            if name in needed or "examples" in member:
                yield name, self.value(member, name, depth + 1)

    def is_open(self, operation: Json) -> bool:
        """Whether an operation needs no token."""
        return {} in operation.get("security", self._security)

    def curl(self, method: str, path: str, operation: Json) -> str:
        """A line for a shell that has BASE, TOKEN and the parameters of the path as variables."""
        words = ["curl", *{"HEAD": ["--head"], "GET": []}.get(method, ["-X", method])]
        answer = next(self.resolve(r) for status, r in operation["responses"].items() if status[0] == "2")
        kinds = answer.get("content", {})
        if "text/event-stream" in kinds:
            words.append("-N")
        elif method != "HEAD" and not kinds:
            words.append("-i")
        elif method != "HEAD" and not any("schema" in media for media in kinds.values()):
            words += ["-o", _file_of(path)]
        if not self.is_open(operation):
            words += ["-H", '"Authorization: Bearer $TOKEN"']
        query = []
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path" or not (parameter["required"] or "example" in parameter):
                continue
            name = parameter["name"]
            value = parameter["example"] if "example" in parameter else self.value(parameter["schema"], name)
            if parameter["in"] == "header":
                words += ["-H", shlex.quote(f"{name}: {value}")]
            else:
                query.append(f"{name}={value}")
        words += self._body(operation.get("requestBody", {}))
        address = "$BASE" + re.sub(r"\{([^}=]*)[^}]*\}", r"$\1", path) + ("?" if query else "") + "&".join(query)
        return " ".join([*words, f'"{address}"'])

    def _body(self, body: Json) -> list[str]:
        content = body.get("content", {})
        if _JSON in content:
            value = self.value(content[_JSON]["schema"])
            if not value and not body["required"]:
                return []
            return ["-H", shlex.quote(f"Content-Type: {_JSON}"), "-d", shlex.quote(json.dumps(value))]
        kind = next(iter(content), "")
        if kind == _FORM:
            return ["-F", "file=@chunk"]
        if not body.get("required") and kind != _ANY:
            return []
        return ["-H", shlex.quote(f"Content-Type: {_shown(kind)}"), "--data-binary", "@file"]

    def answer(self, status: str, response: Json, path: str) -> str:
        """What an answer looks like on the wire."""
        lines = [f"HTTP/1.1 {status} {problems.title(int(status))}"]
        for name, header in response.get("headers", {}).items():
            lines.append(f"{name}: {self.resolve(header)['example']}")
        kind, media = next(iter(response.get("content", {"": {}}).items()))
        if not kind:
            return "\n".join(lines)
        lines += [f"Content-Type: {_shown(kind)}", ""]
        if kind == problems.CONTENT_TYPE:
            value = self.problem(int(status), response["description"], path)
        elif isinstance(media.get("example"), str):
            return "\n".join([*lines, media["example"]])
        elif "schema" in media:
            value = media["example"] if "example" in media else self.value(media["schema"])
        else:
            return "\n".join([*lines, "(bytes)"])
        return "\n".join([*lines, json.dumps(value, ensure_ascii=False, indent=2)])

    def problem(self, status: int, description: str, path: str) -> Json:
        """The body of an error. Its reason is the first that the operation names for the status, before a code."""
        title = problems.title(status)
        found = _REASON.findall(description)
        reason = next((word for word in found if word not in problems.STATUS_BY_CODE), next(iter(found), title))
        meaning = re.sub(r" \([^)]*\)", "", description.partition(";")[0])
        detail = meaning.removeprefix(reason).strip(" ,:") or title
        reason = reason.upper().replace(" ", "_").replace("-", "_")
        problem = problems.Problem(status, reason, detail)
        return problem.document(instance=path, request_id=_UUID.replace("-", ""))


def _shown(kind: str) -> str:
    return "video/mp4" if kind == _ANY else kind


def _file_of(path: str) -> str:
    """What to call the bytes of a path."""
    name = path.rpartition("/")[2]
    return "file" if name.endswith("}") else re.sub(r"\{.*\}", "poster", name)


def _text(schema: Json, name: str) -> str:
    """The first text that looks like the field and fits; a pattern that none of them fits needs an example."""
    if "contentEncoding" in schema:
        return ""
    named = (text for end, text in _NAMES if name.endswith(end))
    texts = (*named, "text", "video/mp4", _HASH, "1.5s")
    found = (text for text in texts if re.search(schema.get("pattern", ""), text))
    return _FORMATS.get(schema.get("format", "")) or next(found, "text")
