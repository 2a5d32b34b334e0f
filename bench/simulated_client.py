"""A client of a simulated node: the real session core, and what its user wants."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from bench.simulated import (
    CANCELS,
    PING_S,
    SAMPLES,
    Stuck,
)
from bench.simulated_processes import GatewayLife, Life
from engine.client_core import SessionCore, State
from engine.client_utterance import Utterance
from engine.scheduler.past import GIVEN_UP
from ipc.messages import (
    ClientMessage,
)
from ipc.peers import split_peer

if TYPE_CHECKING:
    from bench.simulation import World


class Client:
    """The real session core in a shell like ``engine.Client``'s, and what its user wants."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"client{number}"
        self.core = SessionCore({"tag": f"t{number}", "pipeline": "full", "source": "en", "target": "de", "models": {},
                                 "priority": "normal", "window": 8, "first_index": 0, "partials": False})  # fmt: skip
        self.count = world.chance.randint(1, 8)
        self.marks = [world.chance.randbytes(2 * SAMPLES) for _ in range(self.count)]
        self.got: list[Any] = []
        self.cancelled: set[int] = set()
        self.alive = True
        self.gateway = ""  # who we are connected to
        self.incarnation: int | None = None
        for index, mark in enumerate(self.marks):
            world.after(0.0, 6.0, partial(self._submit, index, mark))
        world.after(0.0, 1.0, self._tick)

    @property
    def done(self) -> bool:
        return self.core.state is State.CLOSED

    def _submit(self, index: int, mark: bytes) -> None:
        fields = {"dtype": "s16le", "nbytes": len(mark), "sample_rate": 16000}
        self.core.submit(Utterance(index, fields, mark))
        self._say_all()
        if self.world.chance.random() < CANCELS:
            self.world.after(0.0, 1.5, partial(self._cancel, index))

    def _cancel(self, index: int) -> None:
        """Its user has thought better of it, which may be too late."""
        if not self.core.has_ended(index):
            self.world.paths["cancelled"] += 1
            self.cancelled.add(index)
            self._post(*self.core.cancel(index))

    def connection_lost(self, life: Life) -> None:
        if life.peer == self.gateway:
            self.gateway = ""

    def _tick(self) -> None:
        """Connect when somebody is there; ping while anything is outstanding."""
        world = self.world
        gateway = world.lives.get("gateway")
        if not self.gateway and isinstance(gateway, GatewayLife) and gateway.alive and gateway.open:
            self.gateway = gateway.peer
            if self.core.state is State.OPENING:
                self._post(*self.core.open(world.now))
        elif self.gateway and (self.core.outstanding() or self.core.unended):
            named = [self.core.still_here()] if self.core.state is State.OPEN else []
            self._post({"type": "Ping"}, *named)
        self._say_all()
        world.at(world.now + PING_S, self._tick)

    def receive(self, _: str, thing: Any) -> None:
        incarnation, message, payload = thing
        plain = msgspec.to_builtins(message) | {"type": type(message).__name__}
        if incarnation != split_peer(self.gateway or "gateway#0")[1]:
            return
        had = len(self.core.ended)
        if plain["type"] == "Pong":
            self._met(plain["incarnation"])
        else:
            if self.incarnation is None:
                self.incarnation = incarnation
            self._post(*self.core.handle(plain, payload, self.world.now))
        self.world.paths["Busy"] += plain["type"] == "Busy"
        for outcome in list(self.core.ended)[had:]:
            self.got.append(outcome)
        self._say_all()
        if (ack := self.core.ack()) is not None:
            self._post(ack)

    def _met(self, incarnation: int) -> None:
        changed = self.incarnation not in (None, incarnation)
        self.incarnation = incarnation
        if changed:
            self.world.paths["a client resumes"] += 1
        now = self.world.now
        self._post(*(self.core.resume(now) if changed else self.core.ask_again(now)))

    def _say_all(self) -> None:
        while self.gateway and (utterance := self.core.sendable(self.world.now)) is not None:
            message = self.core.message(utterance)
            self._post(message, payload=utterance.data)
            if self.world.chance.random() < 0.05 and message["type"] == "Submit":
                self.world.paths["sent twice"] += 1
                self._post(message, payload=utterance.data)
        if len(self.got) >= self.count and not self.core.closing:
            self.core.close("drain")
        if self.gateway and (closing := self.core.close_message()) is not None:
            self._post(closing)

    def _post(self, *batch: dict[str, Any], payload: Any = None) -> None:
        if batch and self.gateway:
            typed = tuple(msgspec.convert(message, ClientMessage) for message in batch)
            self.world.send(self.name, self.gateway, (typed, payload))

    def check(self) -> None:
        """One outcome for each utterance, in order, ok, and its own."""
        indices = [outcome.index for outcome in self.got]
        if indices != list(range(self.count)):
            raise Stuck(f"seed {self.world.seed}: {self.name} got {indices} of {self.count}")
        for outcome, mark in zip(self.got, self.marks, strict=True):
            if outcome.code == "cancelled" and outcome.index in self.cancelled:
                continue
            if outcome.error == GIVEN_UP:
                self.world.paths["an input was given up and then needed"] += 1
                continue
            if outcome.outcome != "ok":
                raise Stuck(f"seed {self.world.seed}: {self.name} {outcome.index}: {outcome.code} {outcome.error}")
            if outcome.audio is None or bytes(outcome.audio.tobytes()) != mark:
                raise Stuck(f"seed {self.world.seed}: {self.name} {outcome.index} got somebody else's samples")
