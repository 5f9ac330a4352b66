"""``wherry image tree``."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, cast

import click
from attrs import asdict

from wherry.api import Invalid, LayerFile, LayerUse
from wherry.spec.reference import familiar
from wherry_plugins.frontend.cli import human
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.listing import json_option
from wherry_plugins.frontend.cli.main import printable
from wherry_plugins.frontend.cli.session import ClientGone, Session

LARGEST = 5
MARKS = {"directory": "/", "symlink": " -> ", "link": " = ", "whiteout": " (removed)", "opaque": "/ (emptied)"}


def describe(file: LayerFile) -> str:
    """A path with what it is, in the manner of ls -F; control characters escaped."""
    mark = MARKS.get(file.kind, "")
    target = file.target if file.kind in {"symlink", "link"} else ""
    return printable(f"{file.path}{mark}{target}").replace("\n", "\\n").replace("\t", "\\t")


def _head(layer: LayerUse) -> str:
    sizes = human.size(layer.size)
    if layer.unpacked >= 0:
        sizes += f", {human.size(layer.unpacked)} unpacked"
    shared = f"  [shared with {', '.join(layer.shared)}]" if layer.shared else ""
    return f"{human.short(layer.digest)}  {sizes}{shared}"


def _lines(files: Iterator[LayerFile], *, everything: bool, session: Session) -> Iterator[str]:
    """All entries, or the largest files and how many more there are."""
    kept: list[tuple[int, int, LayerFile]] = []
    count = 0
    with closing(cast(Any, files)):
        for count, file in enumerate(files, 1):
            if session.gone:
                raise ClientGone
            if everything:
                yield f"{human.size(file.size):>8}  {describe(file)}"
            elif file.kind in {"file", "whiteout", "opaque"}:
                item = (file.size, -count, file)
                (heapq.heappushpop if len(kept) == LARGEST else heapq.heappush)(kept, item)
    if not everything:
        yield from (f"{human.size(size):>8}  {describe(file)}" for size, _number, file in sorted(kept, reverse=True))
        if count > len(kept):
            yield f"{'':>8}  and {count - len(kept)} more entries"


def _chosen(layers: Sequence[LayerUse], wanted: tuple[str, ...]) -> Sequence[LayerUse]:
    """All, or those whose digest begins so or whose number, the lowest being 1, is given."""
    if not wanted:
        return layers
    found = []
    for text in wanted:
        match = [
            layer
            for number, layer in enumerate(layers, 1)
            if text == str(number) or (len(text) >= 4 and layer.digest.removeprefix("sha256:").startswith(text))
        ]
        if not match:
            raise Invalid(f'layer "{text}"', f"the image has {len(layers)} layers and none of that number or digest")
        found += match
    return found


@click.command(
    "tree",
    cls=Command,
    help="Show the layers of an image: what each brings, how large it is, and which other images have it, too.",
    examples="wherry image tree debian\nwherry image tree --files --layer 2 app",
)
@option("--files", is_flag=True, help="Every file of each layer, not the largest alone")
@option("--layer", "wanted", multiple=True, metavar="LAYER", help="Only this one, by digest or number; 1 is the lowest")
@option("--platform", default="", metavar="OS/ARCH", help="Platform to choose of a multi-platform image")
@json_option()
@argument("name", metavar="IMAGE")
def command(session: Session, *, files: bool, wanted: tuple[str, ...], platform: str, as_json: bool, name: str) -> int:
    """Prints the tree, the lowest layer first."""
    image = session.engine.image(name)
    layers = _chosen(session.engine.layers(name, platform=platform), wanted)
    if as_json:
        documents = []
        for layer in layers:
            entries = session.engine.layer_files(name, layer.digest, platform=platform) if files else iter(())
            documents.append({**asdict(layer), **({"files": [asdict(file) for file in entries]} if files else {})})
        session.line(json.dumps(documents, indent=2, ensure_ascii=False))
        return 0
    session.line(", ".join(map(familiar, image.names)) or image.id)
    for number, layer in enumerate(layers, 1):
        last = number == len(layers)
        session.line(f"{'└─' if last else '├─'} {_head(layer)}")
        stem = "   " if last else "│  "
        if layer.created_by:
            session.line(f"{stem} {printable(' '.join(layer.created_by.split()))}")
        entries = session.engine.layer_files(name, layer.digest, platform=platform)
        for line in _lines(entries, everything=files, session=session):
            session.line(f"{stem} {line}")
    shared = sum({layer.digest: layer.size for layer in layers if layer.shared}.values())
    total = sum({layer.digest: layer.size for layer in layers}.values())
    count = f"{len(layers)} layer{'' if len(layers) == 1 else 's'}"
    session.line(f"{count}, {human.size(total)}, of which {human.size(shared)} are shared with other images")
    return 0
