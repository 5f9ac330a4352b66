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
from wherry.linux.fuse import PREFIX
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
    """A compiled plan of the made-up container. text: JSON of all in it that bears a name: steps, and parts of the plan."""

    __slots__ = ("compiled", "parts", "steps", "text")

    def __init__(self, compiled: Compiled, bears: Callable[[Any], bool]) -> None:
        self.compiled = compiled
        self.steps = [index for index, step in enumerate(compiled.steps) if bears(step)]
        self.parts = [name for name in ("argv", "env", "join", "hooks") if bears(getattr(compiled, name))]
        named = [compiled.steps[index] for index in self.steps]
        self.text = json.dumps([named, [getattr(compiled, name) for name in self.parts]], separators=(",", ":"))


class PlanTemplates:
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
        if mount.type.startswith(PREFIX):  # a descriptor by the time that it is wanted
            return attrs.evolve(mount, source="", options=tuple(o for o in mount.options if "=" not in o)), own
        return attrs.evolve(mount, source=name("source", mount.source)), own

    def _bears(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._short in value
        if isinstance(value, Mapping):
            return any(map(self._bears, value.values()))
        return isinstance(value, (tuple, list)) and any(map(self._bears, value))

    def _filled(self, template: _Template, id: str, own: Mapping[str, str]) -> Compiled:
        """By replacing text, which is one call for a dozen strings."""
        text = template.text
        for made_up, value in own.items():
            text = text.replace(f'"{made_up}"', json.dumps(value))
        steps, parts = json.loads(text.replace(self._id, id).replace(self._short, id[:_SHORT]))
        compiled, source = Compiled.__new__(Compiled), template.compiled
        for name in Compiled.__slots__:
            setattr(compiled, name, getattr(source, name))
        for name, value in zip(template.parts, parts, strict=True):
            setattr(compiled, name, tuple(value) if name in ("argv", "env") else value)
        compiled.steps = list(source.steps)
        for index, step in zip(template.steps, steps, strict=True):
            compiled.steps[index] = tuple.__new__(type(source.steps[index]), step)
        return compiled


__all__ = ["KEPT", "Compile", "PlanTemplates"]
