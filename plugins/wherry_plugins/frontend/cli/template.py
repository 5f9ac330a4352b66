"""The part of Go's text/template that ``--format`` needs: fields, pipelines, variables, if, range, with and functions.

``render("{{.Names}}", row)``; objects are mappings, a key missing from one is an error that names those that exist, except
through ``index``. Differences from Go: no define, template or block; every comparison is between equal types or strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wherry.api import Invalid
from wherry_plugins.frontend.cli.functions import FUNCTIONS, show, truth
from wherry_plugins.frontend.cli.nearest import hint

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<char>'(?:[^'\\]|\\.)')|(?P<number>[+-]?\d+(?:\.\d+)?)"""
    r"""|(?P<path>\$?(?:[A-Za-z_]\w*)?(?:\.[A-Za-z_]\w*)+|\$[A-Za-z_]\w*|\$|\.)|(?P<word>[A-Za-z_]\w*)|(?P<sign>:=|[|()=,]))"""
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}

Scope = dict[str, Any]
Node = Callable[[Any, Scope, list[str]], None]
Value = Callable[[Any, Scope], Any]


class _Method:
    """A field that takes arguments, as ``.Label "name"``."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


def method(call: Callable[..., Any]) -> Any:
    """Marks the value of a row that a template calls with arguments."""
    return _Method(call)


def compile_template(text: str) -> Callable[[Any], str]:
    """A function from an object to its text. Invalid when the template can't be parsed."""
    pieces = _split(text)
    nodes, ender = _block(pieces, text)
    if ender:
        raise _bad(text, f"unexpected {{{{{ender}}}}}")

    def rendered(item: Any) -> str:
        out: list[str] = []
        scope: Scope = {"$": item}
        for node in nodes:
            node(item, scope, out)
        return "".join(out)

    return rendered


def render(text: str, item: Any) -> str:
    """One object by one template."""
    return compile_template(text)(item)


def unescape(text: str) -> str:
    r"""The backslash escapes that docker honours in --format: \t and \n."""
    return text.replace("\\t", "\t").replace("\\n", "\n")


def _bad(text: str, cause: str) -> Invalid:
    return Invalid(f'template "{text}"', cause, "the syntax is that of Go's text/template")


def _split(text: str) -> list[tuple[str, str]]:
    """("text" or "action", content) in order, reversed, so that pop() takes the next; trim markers applied."""
    pieces: list[tuple[str, str]] = []
    position, trim = 0, False
    for match in _ACTION.finditer(text):
        literal = text[position : match.start()]
        literal = literal.lstrip() if trim else literal
        pieces.append(("text", literal.rstrip() if match[1] else literal))
        if not match[2].startswith("/*"):
            pieces.append(("action", match[2].strip()))
        position, trim = match.end(), bool(match[3])
    rest = text[position:]
    if "{{" in rest:
        raise _bad(text, 'unclosed "{{"')
    pieces.append(("text", rest.lstrip() if trim else rest))
    return pieces[::-1]


def _block(pieces: list[tuple[str, str]], text: str) -> tuple[list[Node], str]:
    """Nodes up to the end, or to an ``end`` or ``else`` that belongs to the caller and is returned."""
    nodes: list[Node] = []
    while pieces:
        kind, content = pieces.pop()
        if kind == "text":
            if content:
                nodes.append(_literal(content))
            continue
        word, _, rest = content.partition(" ")
        if word in {"end", "else"}:
            return nodes, content
        if word in {"if", "with", "range"}:
            nodes.append(_branch(word, rest, pieces, text))
        else:
            nodes.append(_statement(_Parser(content, text)))
    return nodes, ""


def _literal(content: str) -> Node:
    return lambda _item, _scope, out: out.append(content)


def _statement(parser: _Parser) -> Node:
    names, value = parser.declaration()

    def run(item: Any, scope: Scope, out: list[str]) -> None:
        result = value(item, scope)
        if names:
            scope[names[0]] = result
        else:
            out.append(show(result))

    return run


def _branch(word: str, rest: str, pieces: list[tuple[str, str]], text: str) -> Node:
    names, value = _Parser(rest, text).declaration()
    body, ender = _block(pieces, text)
    other: list[Node] = []
    if ender.startswith("else "):
        nested, _, condition = ender[5:].strip().partition(" ")
        if nested != word:
            raise _bad(text, f'unexpected "{ender}"')
        other = [_branch(word, condition, pieces, text)]
    elif ender == "else":
        other, ender = _block(pieces, text)
    if not ender:
        raise _bad(text, f"{{{{{word}}}}} has no {{{{end}}}}")

    def play(nodes: list[Node], item: Any, scope: Scope, out: list[str]) -> None:
        for node in nodes:
            node(item, scope, out)

    def run(item: Any, scope: Scope, out: list[str]) -> None:
        result = value(item, scope)
        scope = dict(scope)
        if word != "range":
            if names:
                scope[names[0]] = result
            chosen = truth(result)
            play(body if chosen else other, result if word == "with" and chosen else item, scope, out)
            return
        pairs = list(_pairs(result, text))
        for key, element in pairs:
            scope.update(zip(names, (key, element) if len(names) > 1 else (element,), strict=False))
            play(body, element, scope, out)
        if not pairs:
            play(other, item, scope, out)

    return run


def _pairs(value: Any, text: str) -> Sequence[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return list(enumerate(range(value)))
    if value is None:
        return ()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(enumerate(value))
    raise _bad(text, f'range can\'t iterate over "{show(value)}"')


class _Parser:
    """One action's tokens."""

    def __init__(self, content: str, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        self.at = 0
        position = 0
        while position < len(content):
            match = _TOKEN.match(content, position)
            if not match:
                if not content[position:].strip():
                    break
                raise _bad(text, f'unexpected "{content[position:].strip()}"')
            self.tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            # "(…).Name" and "x .Name" differ by the space alone.
            if (
                match.lastgroup == "path"
                and content[match.start() : match.start() + 1] == "."
                and position
                and content[position - 1] == ")"
            ):
                self.tokens[-1] = ("chain", match["path"])
            position = match.end()

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("", "")

    def declaration(self) -> tuple[list[str], Value]:
        """Names before := (or =), and the pipeline."""
        names: list[str] = []
        signs = [token for token in self.tokens if token in {("sign", ":="), ("sign", "=")}]
        if signs:
            while self.peek()[1] not in {":=", "="}:
                kind, name = self.peek()
                if (kind != "path" or not name.startswith("$") or "." in name) and name != ",":
                    raise _bad(self.text, f'"{name}" is not a variable')
                if name != ",":
                    names.append(name)
                self.at += 1
            self.at += 1
        value = self.pipeline()
        if self.at < len(self.tokens):
            raise _bad(self.text, f'unexpected "{self.peek()[1]}"')
        return names, value

    def pipeline(self) -> Value:
        value = self.command(None)
        while self.peek() == ("sign", "|"):
            self.at += 1
            value = self.command(value)
        return value

    def command(self, piped: Value | None) -> Value:
        kind, word = self.peek()
        if kind == "word" and word not in {"true", "false", "nil"}:
            self.at += 1
            if word not in FUNCTIONS:
                raise _bad(self.text, f'no function "{word}"{hint(word, FUNCTIONS, " (")}')
            return self.call(word, [*self.operands(), *([piped] if piped else [])])
        first = self.operand()
        arguments = [*self.operands(), *([piped] if piped else [])]
        if not arguments:
            return first

        def invoke(item: Any, scope: Scope) -> Any:
            target = first(item, scope)
            if not isinstance(target, _Method):
                raise _bad(self.text, f'"{word}" takes no argument')
            return target.call(*[argument(item, scope) for argument in arguments])

        return invoke

    def call(self, word: str, arguments: list[Value]) -> Value:
        function = FUNCTIONS[word]

        def invoke(item: Any, scope: Scope) -> Any:
            if word in {"and", "or"}:  # they stop at the first that decides
                result: Any = None
                for argument in arguments:
                    result = argument(item, scope)
                    if truth(result) is (word == "or"):
                        break
                return result
            try:
                return function(*[argument(item, scope) for argument in arguments])
            except (TypeError, ValueError, IndexError) as error:
                raise _bad(self.text, f"{word}: {error}") from None

        return invoke

    def operands(self) -> list[Value]:
        found = []
        while self.peek()[0] and self.peek() not in {("sign", "|"), ("sign", ")")}:
            found.append(self.operand())
        return found

    def operand(self) -> Value:
        kind, word = self.peek()
        self.at += 1
        if kind == "sign" and word == "(":
            inner = self.pipeline()
            if self.peek() != ("sign", ")"):
                raise _bad(self.text, 'unclosed "("')
            self.at += 1
            if self.peek()[0] == "chain":
                names = self.peek()[1].split(".")[1:]
                self.at += 1
                return lambda item, scope: self.walk(inner(item, scope), names)
            return inner
        if kind in {"path", "chain"}:
            start, *names = word.split(".") if word != "." else [""]
            if start:
                return lambda item, scope: self.walk(self.variable(start, scope), names)
            return lambda item, scope: self.walk(item, names)
        if kind in {"string", "char", "number"} or word in {"true", "false", "nil"}:
            constant = _constant(kind, word)
            return lambda item, scope: constant
        if kind == "word" and word in FUNCTIONS:
            return self.call(word, [])
        raise _bad(self.text, f'unexpected "{word}"' if word else "an empty action")

    def variable(self, name: str, scope: Scope) -> Any:
        if name not in scope:
            raise _bad(self.text, f'undefined variable "{name}"')
        return scope[name]

    def walk(self, value: Any, names: Sequence[str]) -> Any:
        for name in names:
            if not isinstance(value, Mapping):
                raise _bad(self.text, f'no field "{name}" in "{show(value)}"')
            if name not in value:
                raise _bad(self.text, f'no field "{name}"{hint(name, value, " (")}')
            value = value[name]
        return value


def _constant(kind: str, word: str) -> Any:
    if kind == "number":
        return float(word) if "." in word else int(word)
    if kind == "":
        return None
    if kind in {"string", "char"}:
        if word[0] == "`":
            return word[1:-1]
        text = re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), word[1:-1])
        return ord(text) if kind == "char" else text
    return {"true": True, "false": False, "nil": None}[word]
