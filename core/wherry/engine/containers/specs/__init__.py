"""From image config and request to an OCI runtime spec, with an owner for every part of it."""

from __future__ import annotations

from wherry.engine.containers.specs.builder import BuiltSpec, SpecInputs, build
from wherry.engine.containers.specs.mounts import with_volumes
from wherry.engine.containers.specs.process import command_of, exec_process
from wherry.engine.containers.specs.templates import EncodedSpec, SpecTemplates, write

__all__ = [
    "BuiltSpec",
    "EncodedSpec",
    "SpecInputs",
    "SpecTemplates",
    "build",
    "command_of",
    "exec_process",
    "with_volumes",
    "write",
]
