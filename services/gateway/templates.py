"""Path templates of ``google.api.http``, turned into paths of aiohttp's router.

Grammar (google/api/http.proto)::

    Template = "/" Segments [ ":" LITERAL ] ;
    Segments = Segment { "/" Segment } ;
    Segment  = "*" | "**" | LITERAL | Variable ;
    Variable = "{" FieldPath [ "=" Segments ] "}" ;
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(r"\*\*|\*|[/{}:=]|[A-Za-z0-9._~-]+")
_FIELD_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_WILDCARDS = {"*": "[^/]+", "**": ".*"}


class TemplateError(ValueError):
    """A template that cannot be served; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template.

    ``path`` is what aiohttp's router takes; the value of ``fields[i]`` is in its group ``p<i>``. ``display``
    is the path as people and OpenAPI write it. ``rank`` sorts the more specific template first.
    """

    text: str
    path: str
    display: str
    fields: tuple[str, ...]
    rank: tuple[int, ...]

    @property
    def shape(self) -> str:
        """Equal for two templates that match the same paths."""
        return re.sub(r"\{[pw][0-9]+", "{", self.path)


def parse(text: str) -> Template:
    """Parses a template. Raises TemplateError."""
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[str] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(f"the character {text[position]!r} is not allowed")
            self._tokens.append(match.group())
            position = match.end()
        self._at = 0
        self._fields: list[str] = []
        self._wildcards = 0

    def parse(self) -> Template:
        path, display, rank = "", "", []
        ended = False
        while self._peek() == "/":
            self._take("/")
            if ended:
                raise self._error("** must be the last segment")
            pattern, shown, weight = self._segment()
            path, display = f"{path}/{pattern}", f"{display}/{shown}"
            ended = weight == 2
            rank.append(weight)
        verb = ""
        if self._peek() == ":":
            self._take(":")
            verb = f":{self._literal()}"
        if self._peek() or not rank:
            raise self._error(f"{self._peek() or 'nothing'!r} stands where a segment should begin")
        # A verb is part of the last segment: {id}:cancel must be tried before {id}, which matches it too.
        specific = (*rank[:-1], -1) if verb else tuple(rank)
        return Template(self._text, path + verb, display + verb, tuple(self._fields), specific)

    def _segment(self) -> tuple[str, str, int]:
        """A segment as (router path, display, 0 literal · 1 one segment · 2 any number of them)."""
        part = self._peek()
        if part == "{":
            return self._variable()
        if part in _WILDCARDS:
            self._take(part)
            name = f"w{self._wildcards}"
            self._wildcards += 1
            return f"{{{name}:{_WILDCARDS[part]}}}", part, len(part)
        literal = self._literal()
        return literal, literal, 0

    def _variable(self) -> tuple[str, str, int]:
        self._take("{")
        field = self._literal()
        if not _FIELD_PATH.fullmatch(field):
            raise self._error(f"{field!r} is not a field path")
        if field in self._fields:
            raise self._error(f"{field} is bound twice")
        patterns = ["*"]
        if self._peek() == "=":
            self._take("=")
            patterns = [self._inner()]
            while self._peek() == "/":
                self._take("/")
                patterns.append(self._inner())
        self._take("}")
        if "**" in patterns[:-1]:
            raise self._error("** must be the last segment")
        name = f"p{len(self._fields)}"
        self._fields.append(field)
        pattern = "/".join(_WILDCARDS.get(p, re.escape(p)) for p in patterns)
        return f"{{{name}:{pattern}}}", f"{{{field}}}", 2 if patterns[-1] == "**" else 1

    def _inner(self) -> str:
        part = self._peek()
        if part in _WILDCARDS:
            self._take(part)
            return part
        if part == "{":
            raise self._error("a variable cannot hold another")
        return self._literal()

    def _literal(self) -> str:
        part = self._peek()
        if not part or part in "/{}:=" or part in _WILDCARDS:
            raise self._error(f"{part or 'the end'!r} stands where a name should be")
        self._at += 1
        return part

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, expected: str) -> None:
        if self._peek() != expected:
            raise self._error(f"{expected!r} is missing before {self._peek() or 'the end'!r}")
        self._at += 1

    def _error(self, why: str) -> TemplateError:
        return TemplateError(f"path template {self._text!r}: {why}")
