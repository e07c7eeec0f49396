"""What the parts of a running service know of each other: one plain object, written by few, read by many.

__main__.py  room, corrections, ready      server.py   draining
watcher.py   refused_release               app.py      in_flight
                   └──► /readyz, /metrics, and who is let in ◄──┘
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.corrections import CorrectionService
    from serving.room import Room


@dataclass
class ServiceState:
    """The state of one service, from its first second on."""

    room: "Room | None" = None  # None until the release is loaded
    corrections: "CorrectionService | None" = None  # as the room
    ready: bool = False  # loaded, and every batch size was run once
    draining: bool = False  # finishes what it has accepted, and then ends
    # what releases/current names and could not be used, and why; None in place of the name: it names nothing
    refused_release: tuple[str | None, str] | None = None
    in_flight: int = 0  # requests that are not finished
