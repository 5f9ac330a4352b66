"""rmi: an image that containers use stays, unless forced."""

from __future__ import annotations

from wherry.api import InUse
from wherry.engine.state.state import State


class ImageRemoval:
    def __init__(self, state: State) -> None:
        self._state = state

    def remove(self, name: str, *, force: bool) -> tuple[str, ...]:
        """InUse when it is the last name of an image that a container was made from, as docker. Forced, the container keeps
        its snapshots: they are its own parents."""
        images = self._state.images
        image = images.get(name)
        users = [record for record in self._state.registry if record.image_id == image.id]
        if users and len(image.names) <= 1 and not force:
            running = [record for record in users if record.live]
            user = (running or users)[0]
            raise InUse(
                f'image "{name}"',
                f'container "{user.name}" ({user.id[:12]}) ' + ("runs from it" if running else "was made from it"),
                "remove that container first, or force",
            )
        return tuple(images.remove(name, force=force))
