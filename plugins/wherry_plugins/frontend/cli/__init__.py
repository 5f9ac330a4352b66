"""The command line: ``wherry``, as users of docker know it. The client sends argv; click runs here, in the engine."""

from __future__ import annotations

from wherry.api import Registration, hookimpl
from wherry_plugins.frontend.cli.server import CliConfig, CliFrontend


@hookimpl
def wherry_frontend() -> Registration[CliConfig, CliFrontend]:
    """The registration; click is imported at the first command."""
    return Registration(id="cli", config=CliConfig, init=CliFrontend)
