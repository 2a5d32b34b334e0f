"""What the arbiter says of leases, in words and in its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from heapq import nlargest
from operator import itemgetter
from typing import Any

from engine.arbiter.lease import EXTERNAL, LEAVING, Lease, LeaseState
from engine.arbiter.room import DeviceMemory
from engine.limits import Limits
from ipc.messages import Denied, Granted, Inquire, LeaseWait

GIB = 2**30
NAMED = 3  # of those who have a device's memory


def name(lease: Lease) -> str:
    return lease.peer.rpartition("#")[0]


def printable(given: str) -> str:
    """A name that somebody else has chosen, for anybody's terminal and the log: what is no text in it is escaped."""
    if given.isprintable():
        return given
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in given)


def gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.1f} GiB" if abs(nbytes) >= GIB else f"{nbytes / 2**20:.0f} MiB"


def told(peer: str, message: Any) -> str:
    """What a worker is told, for the log."""
    who = peer.rpartition("#")[0] or peer
    match message:
        case Granted(nbytes=nbytes):
            return f"{who} is granted {gib(nbytes)}"
        case LeaseWait(reason=reason):
            return f"{who} waits: {reason}"
        case Denied(reason=reason):
            return f"{who} gets no memory: {reason}"
    return f"{who}: {type(message).__name__}"


def is_told_elsewhere(peer: str, message: Any) -> bool:
    """Whether the log has it from others: what workers wait for and why they get nothing, the scheduler says."""
    return isinstance(message, Inquire) or (isinstance(message, (LeaseWait, Denied)) and not _is_program(peer))


def _is_program(peer: str) -> bool:
    """Whether this is the name of a holder outside the node."""
    return peer.startswith(EXTERNAL)


def too_little(lease: Lease, memory: DeviceMemory, present: Collection[Lease], room: int) -> str:
    """Why there is not enough, with the figures that bound it."""
    assert memory.reading is not None
    free, limits = memory.reading.free_bytes, memory.limits
    figures = f"{gib(free)} free, {gib(memory.promised(present))} promised"
    if (taken := memory.taken_of_ceiling(present)) >= 0:
        figures = f"{ceiling(limits)}, {gib(taken)} of them taken"
    elif any(booked := memory.booked_bytes(present)):
        figures = f"{gib(limits.total_bytes)} in all, {gib(booked[0])} leased, {gib(booked[1])} of other programs"
    needs, there = apart(lease.nbytes, max(0, room))
    needs += " more" if lease.grows else ""
    figures += f", {margin(limits, free)}"
    return f"{name(lease)} needs {needs} on {lease.device}, {there} can be granted ({figures})"


def apart(one: int, other: int) -> tuple[str, str]:
    """Two sizes in words that differ where they do."""
    for words in (gib, _mib, _bytes):
        if words(one) != words(other):
            break
    return words(one), words(other)


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB"


def _bytes(nbytes: int) -> str:
    return f"{nbytes} bytes"


def never_fits(lease: Lease, limits: Limits) -> str:
    mend = "ask for less, or for another device" if lease.external else "use a smaller model or another device"
    whole = ceiling(limits) if limits.usable_bytes < limits.total_bytes else gib(limits.total_bytes)
    return (
        f"{name(lease)} needs {gib(lease.nbytes)} on {lease.device}, which can give {gib(max(0, limits.most_bytes))}"
        f" even when empty ({whole}, {margin(limits, limits.total_bytes)}): {mend}"
    )


def ceiling(limits: Limits) -> str:
    return f"of {gib(limits.total_bytes)} {limits.ceiling_by} leaves {gib(limits.usable_bytes)}"


def margin(limits: Limits, free: int) -> str:
    nbytes = limits.margin(free)
    by = "devices.reserve_bytes" if nbytes and nbytes == limits.reserve_bytes else "margin"
    return f"{gib(nbytes)} {by}"


def overuse(lease: Lease, granted: int) -> str:
    has, who = gib(lease.peak_bytes), name(lease)
    mend = "ask for that the next time" if lease.external else "its next load asks for that"
    return f"{who} has {has} on {lease.device}, {gib(granted)} were granted: {mend}"


def leaving(lease: Lease, *, overdue: bool) -> str:
    """A program that was asked to leave, and is still there."""
    return _program(lease, ", overdue" if overdue else "")


def taken(leases: Iterable[Lease], foreign: int) -> str:
    """Who has most of a device's memory, or may take it, as the room for a grant counts it; "": nobody.

    ``foreign``: bytes that no lease covers.
    """
    has: Counter[str] = Counter({"programs without a lease": foreign} if foreign > 0 else {})
    for lease in leases:
        if nbytes := lease.held_bytes + lease.promised_bytes:
            left = ", ended" if lease.state in LEAVING else ", lost" if lease.state is LeaseState.LOST else ""
            has[_program(lease, left) if lease.external else name(lease) + (left and f" ({left[2:]})")] += nbytes
    most = ", ".join(f"{who} {gib(nbytes)}" for who, nbytes in nlargest(NAMED, has.items(), key=itemgetter(1)))
    return f"taken by {most}{f' and {len(has) - NAMED} more' if len(has) > NAMED else ''}" if has else ""


def _program(lease: Lease, more: str) -> str:
    return f"{lease.model or 'a program'} ({name(lease)}{more})"


def quarantined(device: str, reason: str) -> str:
    return f"{device} is quarantined: {reason}"


def drained(device: str) -> str:
    return f"{device} is drained by an operator, who may let it be used again: run_node.py ctl resume {device}"


def lease_row(lease: Lease, *, overdue: bool) -> dict[str, Any]:
    return {
        "lease": lease.number,
        "worker": lease.peer,
        "device": lease.device,
        "nbytes": lease.nbytes,
        "state": lease.state.value,
        "held_bytes": lease.held_bytes,
        "measured_bytes": lease.measured_bytes,
        "over_bytes": max(0, lease.held_bytes - lease.nbytes),
        "granted_s": lease.granted_at,
        "left_s": lease.left_at,
        "pid": lease.pid,
        "model": lease.model,
        "preemptible": lease.preemptible,
        "asked_to_leave": lease.asked_at is not None,
        "overdue": overdue,
    }
