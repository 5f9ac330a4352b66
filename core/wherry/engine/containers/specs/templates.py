"""Specs of containers whose requests are alike are built once, for a made-up id, and filled in for each of them."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import attrs

from wherry.api import Error
from wherry.engine.containers.specs.builder import SpecInputs, build

KEPT = 64
_ID = 64
_SHORT = 12


@attrs.frozen
class EncodedSpec:
    """A spec and the owners of its parts, as data and as JSON."""

    spec: dict[str, Any]
    owners: dict[str, str]
    text: str
    owners_text: str


def write(spec: dict[str, Any], owners: dict[str, str]) -> EncodedSpec:
    return EncodedSpec(spec, owners, json.dumps(spec, separators=(",", ":")), json.dumps(owners, separators=(",", ":")))


class SpecTemplates:
    """Thread-safe. A request that looks at the host's files, e.g. for a bind, is built anew each time."""

    def __init__(self) -> None:
        self._id = secrets.token_hex(_ID // 2)
        self._kept: dict[tuple[str, ...], tuple[str, str]] = {}

    def build(self, inputs: SpecInputs, image_id: str, request: str) -> EncodedSpec:
        """As ``builder.build``. image_id stands for the image config, request for all that the request says of the spec."""
        wish = inputs.request
        if len(inputs.id) != _ID or not image_id or wish.mounts or wish.devices or wish.init or wish.privileged:
            return self._new(inputs)
        id, short, made_up, made_up_short = inputs.id, inputs.id[:_SHORT], self._id, self._id[:_SHORT]
        files = "" if inputs.files is None else str(inputs.files).replace(id, made_up)
        hostname = made_up_short if inputs.hostname == short else inputs.hostname
        key = (image_id, request, hostname, inputs.network, files, inputs.cgroups_path.replace(id, made_up))
        texts = self._kept.get(key)
        if texts is None:
            try:
                place = Path(files) if files else None
                made = self._new(SpecInputs(made_up, inputs.image, wish, hostname, key[5], place, inputs.network))
            except Error:
                return self._new(inputs)  # which says so in the container's own names
            texts = made.text, made.owners_text
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[key] = texts
        text = texts[0].replace(made_up, id).replace(made_up_short, short)
        return EncodedSpec(json.loads(text), json.loads(texts[1]), text, texts[1])

    @staticmethod
    def _new(inputs: SpecInputs) -> EncodedSpec:
        built = build(inputs)
        return write(built.spec, built.owners)
