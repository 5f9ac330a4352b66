"""From image config and request to an OCI runtime spec, with an owner for every part of it."""

from __future__ import annotations

from wherry.engine.specs.builder import Built, Inputs, build
from wherry.engine.specs.mounts import with_volumes
from wherry.engine.specs.process import command_of, exec_process
from wherry.engine.specs.templates import Templates, Written, write

__all__ = ["Built", "Inputs", "Templates", "Written", "build", "command_of", "exec_process", "with_volumes", "write"]
