"""Every stage, doctor: what of the environment works, and what to do about what does not.

Decisions: each line is something that was tried on this machine just now, not something read out of a list of
requirements. Nothing is imported before it is looked at, so that a broken library costs its own line and no other.
"""

from laennec.doctor import audio, hub, machine, packages, storage
from laennec.doctor.finding import Finding


def examine(online: bool = False) -> list[Finding]:
    """Try what laennec needs, room by room.

    Args:
        online: Whether the Hub is asked for an answer.
    """
    return [
        *machine.examine(),
        *packages.examine(),
        *audio.examine(),
        *storage.examine(),
        *hub.examine(online),
    ]
