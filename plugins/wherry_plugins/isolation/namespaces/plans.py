"""Plans of containers that differ in their names only are compiled once.

A spec is compiled as if its container had another id and root, both made up; what comes out is kept by what went in, and
those names in it become each container's own. So a start finds a place for a dozen strings instead of judging a spec anew.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from wherry.api import Mount
from wherry.oci.compile import Compiled
from wherry.oci.errors import SpecError

KEPT = 64
_ID = 64
_SHORT = 12
#: Options of an overlay that name directories of one container alone.
_OWN = ("upperdir=", "workdir=")

#: (id, spec, root mounts, bundle, sandboxed) -> plan.
Compile = Callable[[str, Mapping[str, Any], Sequence[Mount], str, bool], Compiled]


class _Template:
    """A compiled plan of the made-up container, and which of its steps bear a name."""

    __slots__ = ("compiled", "named", "used")

    def __init__(self, compiled: Compiled, bears: Callable[[Any], bool]) -> None:
        self.compiled = compiled
        self.named = [index for index, step in enumerate(compiled.steps) if bears(step)]
        self.used = [name for name in ("argv", "env", "join", "hooks") if bears(getattr(compiled, name))]


class Plans:
    """Belongs to one driver: what its compiling depends on besides the arguments must stay as long as that lives."""

    def __init__(self) -> None:
        self._id = secrets.token_hex(_ID // 2)
        self._short = self._id[:_SHORT]
        self._templates: dict[tuple[Any, ...], _Template] = {}

    def compiled(
        self, compile: Compile, id: str, spec: Mapping[str, Any], rootfs: Sequence[Mount], bundle: str, sandboxed: bool
    ) -> Compiled:
        """What compile answers, and raises."""
        if len(id) != _ID or not id.isalnum() or len(rootfs) != 1:
            return compile(id, spec, rootfs, bundle, sandboxed)
        text = json.dumps(spec, separators=(",", ":"))
        text = text.replace(id, self._id).replace(id[:_SHORT], self._short)
        root, own = self._root(rootfs[0])
        place = bundle.replace(id, self._id)
        key = (text, root.type, root.source, root.target, root.options, root.idmap, place, sandboxed)
        found = self._templates.get(key)
        if found is None:
            try:
                found = _Template(compile(self._id, json.loads(text), (root,), place, sandboxed), self._bears)
            except SpecError:
                return compile(id, spec, rootfs, bundle, sandboxed)  # which says so in the container's own names
            if len(self._templates) >= KEPT:
                self._templates.clear()
            self._templates[key] = found
        return self._filled(found, id, own)

    def _root(self, mount: Mount) -> tuple[Mount, dict[str, str]]:
        """The root with names of our own, and what stands behind each."""
        own: dict[str, str] = {}

        def name(kind: str, value: str) -> str:
            own[f"/{self._id}/{kind}"] = value
            return f"/{self._id}/{kind}"

        if mount.type == "overlay":
            options = []
            for option in mount.options:
                key, equals, value = option.partition("=")
                options.append(f"{key}={name(key, value)}" if equals and option.startswith(_OWN) else option)
            return attrs.evolve(mount, options=tuple(options)), own
        return attrs.evolve(mount, source=name("source", mount.source)), own

    def _bears(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._short in value
        if isinstance(value, Mapping):
            return any(map(self._bears, value.values()))
        return isinstance(value, (tuple, list)) and any(map(self._bears, value))

    def _filled(self, template: _Template, id: str, own: Mapping[str, str]) -> Compiled:
        short, made_up, made_up_short = id[:_SHORT], self._id, self._short

        def fill(value: Any) -> Any:
            if isinstance(value, str):
                if made_up_short not in value:
                    return value
                if (found := own.get(value)) is not None:
                    return found
                return value.replace(made_up, id).replace(made_up_short, short)
            if isinstance(value, Mapping):
                return {key: fill(item) for key, item in value.items()}
            if isinstance(value, (tuple, list)):
                filled = map(fill, value)
                return tuple.__new__(type(value), filled) if isinstance(value, tuple) else list(filled)
            return value

        compiled, source = Compiled.__new__(Compiled), template.compiled
        for name in Compiled.__slots__:
            value = getattr(source, name)
            setattr(compiled, name, fill(value) if name in template.used else value)
        compiled.steps = list(source.steps)
        for index in template.named:
            compiled.steps[index] = fill(source.steps[index])
        return compiled
