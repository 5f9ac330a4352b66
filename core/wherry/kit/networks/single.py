"""What a driver with one built-in network, named like itself, answers where it is asked about networks."""

from __future__ import annotations

from collections.abc import Iterator

from wherry.api import Invalid, NetworkConfig, NotFound


class BuiltinNetwork:
    """Part of a ``wherry.api.Network``: create, remove and list; a subclass says its name, and by ``described`` what its network is."""

    name = ""

    def described(self) -> NetworkConfig:
        return NetworkConfig(self.name)

    def create(self, config: NetworkConfig) -> NetworkConfig:
        raise Invalid(
            f'network "{config.name}"',
            f'the network driver "{self.name}" has the one network "{self.name}" and cannot make others',
            "choose another network driver",
        )

    def remove(self, name: str) -> None:
        if name == self.name:
            raise Invalid(f'network "{name}"', "is built in and can't be removed")

    def list(self) -> Iterator[NetworkConfig]:
        yield self.described()

    def own(self, name: str) -> None:
        """NotFound unless that is the name of the one network."""
        if name != self.name:
            raise NotFound(f'network "{name}"', f'the network driver "{self.name}" only has "{self.name}"')


__all__ = ["BuiltinNetwork"]
