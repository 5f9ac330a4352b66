"""Rows as tables, templates or JSON, as docker prints them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from wherry_plugins.frontend.cli.command import option
from wherry_plugins.frontend.cli.functions import json as one_line
from wherry_plugins.frontend.cli.functions import plain
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.template import compile_template, unescape

GAP = 3
NARROWEST = 10


class ListingRow(Mapping[str, Any]):
    """One object under the field names of docker's --format, each computed when it is asked for."""

    __slots__ = ("_fields", "_item")

    def __init__(self, fields: Mapping[str, Callable[[Any], Any]], item: Any) -> None:
        self._fields = fields
        self._item = item

    def __getitem__(self, name: str) -> Any:
        return self._fields[name](self._item)

    @staticmethod
    def column(rows: Sequence[ListingRow], name: str) -> list[Any]:
        """One field of rows of the same kind."""
        if not rows:
            return []
        field = rows[0]._fields[name]
        return [field(row._item) for row in rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class _Heads(Mapping[str, Any]):
    """Stands for a row when the heading of ``table`` is rendered: each field answers its column's head."""

    def __init__(self, heads: Mapping[str, str]) -> None:
        self.heads = heads

    def __getitem__(self, name: str) -> Any:
        return self.heads.get(name, name.upper())

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)


def table(lines: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the last one is not padded."""
    return _aligned(list(zip(*lines, strict=True))) if lines else ""


def _aligned(columns: Sequence[Sequence[str]]) -> str:
    """The same by columns, which for ten thousand rows is twice as quick."""
    widths = [max(NARROWEST, max(map(len, column)) + GAP) for column in columns[:-1]]
    padded = [[cell.ljust(width) for cell in column] for column, width in zip(columns, widths, strict=False)]
    return "".join(["".join(line).rstrip() + "\n" for line in zip(*padded, columns[-1], strict=True)])


def show(
    session: Session,
    rows: Sequence[ListingRow],
    columns: Sequence[tuple[str, str]],
    *,
    form: str = "",
    as_json: bool = False,
    quiet: str = "",
) -> None:
    """Prints rows, as JSON or as ``rendered``; quiet: the only field to print."""
    if as_json:
        session.line(json.dumps([plain(row) for row in rows], indent=2, ensure_ascii=False))
    elif quiet:
        session.out("".join([f"{text}\n" for text in ListingRow.column(rows, quiet)]))
    else:
        session.out(rendered(rows, columns, form))


def rendered(rows: Sequence[ListingRow], columns: Sequence[tuple[str, str]], form: str) -> str:
    """Lines. columns: (head, field) of the default table; form: a template, "table TEMPLATE", "table" or "json"."""
    if form == "json":
        form = "{{json .}}"
    if form in {"", "table"}:
        return _aligned([[head, *ListingRow.column(rows, name)] for head, name in columns])
    if form.startswith("table "):
        render = compile_template(unescape(form[6:]))
        head = render(_Heads({name: head for head, name in columns}))
        lines = [head.split("\t"), *[render(row).split("\t") for row in rows]]
        width = max(map(len, lines))
        return table([[*line, *[""] * (width - len(line))] for line in lines])
    render = compile_template(unescape(form))
    return "".join([render(row) + "\n" for row in rows])


def show_one(session: Session, items: Sequence[Any], form: str) -> None:
    """Documents of inspect and the like: a JSON array, or each through a template."""
    if form and form != "json":
        render = compile_template(unescape(form))
        session.out("".join([render(item) + "\n" for item in items]))
    elif form:
        session.out("".join([one_line(item) + "\n" for item in items]))
    else:
        session.line(json.dumps([plain(item) for item in items], indent=4, ensure_ascii=False))


def format_option(text: str = "Print each row by a Go template, as a table by one, or as JSON") -> Callable[[Any], Any]:
    """--format of a listing."""
    return option("--format", "form", metavar="TEMPLATE", default="", help=text)


def filter_option(keys: str, *names: str) -> Callable[[Any], Any]:
    """--filter of a listing, for ``values.filters``; keys: what the help names. names: further spellings, such as "-f"."""
    return option(*names, "--filter", "filters", multiple=True, metavar="KEY=VALUE", help=keys)


def json_option() -> Callable[[Any], Any]:
    """--json of a listing."""
    return option("--json", "as_json", is_flag=True, help="Print a JSON array")
