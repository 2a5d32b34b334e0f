"""What could lie on the devices at best: an offline packing of everybody who is there, by their true sizes. Pure.

First-fit decreasing, made anew at each arrival and departure, as if all could be moved at no cost: the largest first,
each on its own device, or, if it may lie anywhere, on the first that has room. It keeps to what the configuration
rules out (ceiling, number of models) and to what other programs hold, and to no margin, load time or estimate.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping

from bench.vram_clock import Clock
from engine.limits import Limits

Item = tuple[int, str, str, str]  # minus true bytes, who, device ("": any), model ("": does not count as one)


class Packing:
    """``byte_s``: packed bytes over time."""

    def __init__(self, limits: Iterable[Limits], clock: Clock) -> None:
        self.byte_s = 0.0
        self._limits = tuple(limits)
        self._clock = clock
        self._items: list[Item] = []
        self._packed = 0
        self._since = clock.now

    def arrive(self, item: Item) -> None:
        insort(self._items, item)

    def depart(self, item: Item) -> None:
        self._items.remove(item)

    def recompute(self, foreign: Mapping[str, int]) -> None:
        """Somebody has come, gone, or taken what is not his."""
        self.settle()
        room = {one.name: one.usable_bytes - foreign[one.name] for one in self._limits}
        models: dict[str, set[str]] = {one.name: set() for one in self._limits}
        most = {one.name: one.max_models for one in self._limits}
        self._packed = 0
        for minus, _, device, model in self._items:
            for name in (device,) if device else room:
                if room[name] >= -minus and (not model or model in models[name] or len(models[name]) < most[name]):
                    room[name] += minus
                    self._packed -= minus
                    if model:
                        models[name].add(model)
                    break

    def settle(self) -> None:
        """Bring ``byte_s`` up to now."""
        self.byte_s += self._packed * (self._clock.now - self._since)
        self._since = self._clock.now
