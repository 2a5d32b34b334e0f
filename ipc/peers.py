"""Names of processes on internal links: ``role#incarnation``, one for each life of a role."""

from __future__ import annotations


def peer_name(role: str, incarnation: int) -> str:
    """Routing id of one life of a role."""
    return f"{role}#{incarnation}"


def split_peer(name: str) -> tuple[str, int]:
    """Role and incarnation of a peer's name. Raises ValueError when it is none."""
    role, _, incarnation = name.rpartition("#")
    return role, int(incarnation)
