"""A client of a simulated node: the real session core, and what its user wants.

Some acknowledge late, some never, until they leave for good; some close their session while indices are missing, and
now and then one comes back on another connection while the node still takes the old one for alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from bench import simulated_wish
from bench.simulated import OTHER, PING_S, Stuck
from bench.simulated_processes import WINDOW, GatewayLife, Life
from bench.simulated_wish import Wish
from engine.choices import name_of
from engine.client_core import SessionCore, State
from engine.client_utterance import Place, Utterance
from engine.gateway.events import ClientLost
from engine.outcome import SessionClosed
from ipc.messages import ClientMessage

if TYPE_CHECKING:
    from bench.simulation import World

CANCELS, TWICE = 0.08, 0.05  # shares of the utterances
LAZY, MUTE, EAGER_TO_CLOSE = 0.2, 0.04, 0.2  # shares of the clients
SUBMITS_S = 6.0  # when the last utterance is sent, at the latest
LATE_ACK_S = (1.0, 6.0)
LEAVES_S = 12.0  # when a client that never acknowledges has had enough
NOTICED_S = 4.0  # how long the node may take a lost connection for alive
OPENING = {"pipeline": "full", "source": "en", "target": "de", "models": {}, "priority": "normal", "window": WINDOW,
           "first_index": 0, "partials": False}  # fmt: skip


class Client:
    """The real session core in a shell like ``engine.Client``'s. ``name``: of its connection."""

    alive = True

    def __init__(self, world: World, number: int) -> None:
        chance = world.chance
        self.world = world
        self.number, self.connection = number, 0
        self.model = OTHER if world.shared and world.models.random() < 0.5 else ""  # of the stage that has two
        chosen = {world.shared: self.model} if self.model else {}
        self.core = SessionCore({"tag": f"t{number}", **OPENING, "models": chosen})
        count = chance.randint(1, WINDOW)
        self.wishes = [
            simulated_wish.draw(chance, n, n == count - 1, world.samples, world.pipeline) for n in range(count)
        ]
        self.got: list[Any] = []
        self.is_lazy = chance.random() < LAZY  # it acknowledges late
        self.is_mute = self.is_lazy and chance.random() < MUTE / LAZY  # ... or never
        self.has_left = False
        self.gateway = ""  # who we are connected to
        self.incarnation: int | None = None  # ... and whom we have heard there
        self._ack_planned = False
        world.wishes.update({wish.name: wish for wish in self.wishes})
        world.network.peers[self.name] = self
        for wish in self.wishes:
            if wish.left_out != "gap":
                world.after(0.0, SUBMITS_S, self._submit, wish)
        if chance.random() < EAGER_TO_CLOSE:
            world.at(world.now + SUBMITS_S, self._close)
        world.after(0.0, 1.0, self._tick)
        if self.is_mute:
            world.at(world.now + LEAVES_S, self._leave)

    @property
    def name(self) -> str:
        return f"client{self.number}.{self.connection}"

    @property
    def done(self) -> bool:
        return self.has_left or self.core.state is State.CLOSED

    # ---------------------------------------------------------------- what its user does

    def _submit(self, wish: Wish) -> None:
        if wish.left_out:
            self.core.skip(wish.index)
        elif self.core.may_submit(wish.index) is None:  # else it has ended without us: the node stops
            fields = {"dtype": "s16le", "nbytes": len(wish.samples), "sample_rate": 16000, "budget_ms": wish.budget_ms}
            self.core.submit(Utterance(wish.index, fields, wish.samples))
        self._say_all()
        if not wish.left_out and self.world.chance.random() < CANCELS:
            self.world.after(0.0, 1.5, self._cancel, wish)

    def _cancel(self, wish: Wish) -> None:
        """Its user has thought better of it, which may be too late."""
        if not self.core.has_ended(wish.index):
            self.world.paths["cancelled"] += 1
            wish.cancelled = True
            self._post(*self.core.cancel(wish.index))

    def _close(self) -> None:
        """Nothing more will be sent; the node need not wait for what is missing."""
        self.world.paths["closed with indices missing"] += any(
            not self.core.has_ended(wish.index) for wish in self.wishes if wish.left_out == "gap"
        )
        self.core.close("drain")
        self._say_all()

    # ---------------------------------------------------------------- its connection

    def node_lost(self, life: Life) -> None:
        if life.peer == self.gateway:
            self.gateway = ""

    def lose_connection(self) -> None:
        """Another connection from here on; the node hears of the old one's end later, and before that perhaps an
        echo of it."""
        world, old = self.world, self.name
        if self.has_left:
            return
        world.paths["a connection is lost"] += bool(self.gateway)
        del world.network.peers[old]
        self.connection += 1
        world.network.peers[self.name] = self
        echo = [self.core.still_here()] if self.core.state is State.OPEN and not self.is_lazy else []
        world.after(0.0, NOTICED_S, self._old_one_ends, old, self.gateway, echo)

    def _leave(self) -> None:
        self.world.paths["a client leaves that never acknowledged"] += self.core.state is State.OPEN
        self.lose_connection()
        del self.world.network.peers[self.name]
        self.has_left, self.gateway = True, ""

    def _old_one_ends(self, old: str, gateway: str, echo: list[dict[str, Any]]) -> None:
        if gateway:
            self.world.network.send(old, gateway, (_typed(echo), None))
            self.world.network.send(old, gateway, ClientLost(old.encode()))

    def _tick(self) -> None:
        """Connect when somebody is there; ping while anything is outstanding."""
        world = self.world
        if self.has_left:
            return
        gateway = world.lives.get("gateway")
        if not self.gateway and isinstance(gateway, GatewayLife) and gateway.alive and gateway.open:
            self.gateway = gateway.peer
            if self.core.state is State.OPENING:
                self._post(*self.core.open(world.now))
        elif self.gateway and (self.core.outstanding() or self.core.unended):
            named = [self._still_here()] if self.core.state is State.OPEN else []
            self._post({"type": "Ping"}, *named)
        self._say_all()
        world.after(PING_S, PING_S, self._tick)

    def _still_here(self) -> dict[str, Any]:
        """A word about the session, by which the node shows whether it knows us here."""
        if self.is_lazy:
            return {"type": "Ack", "session": self.core.id, "through": self.core.acked}
        return self.core.still_here()

    # ---------------------------------------------------------------- what the node says

    def receive(self, sender: str, thing: Any) -> None:
        incarnation, message, payload = thing
        if sender != self.gateway:
            return
        plain = msgspec.to_builtins(message) | {"type": type(message).__name__}
        had = len(self.core.ended)
        if plain["type"] == "Pong":
            self._met(plain["incarnation"])
        else:
            if self.incarnation is None:
                self.incarnation = incarnation
            self._post(*self.core.handle(plain, payload, self.world.now))
        if plain["type"] == "Accepted":
            self.wishes[plain["index"]].accepted = True
        self.world.paths["Busy"] += plain["type"] == "Busy"
        self.got += list(self.core.ended)[had:]
        self._say_all()
        if self.is_mute:
            return
        if self.is_lazy and not self._ack_planned:
            self._ack_planned = True
            self.world.after(*LATE_ACK_S, self._ack)
        elif not self.is_lazy:
            self._ack()

    def _ack(self) -> None:
        self._ack_planned = False
        if (ack := self.core.ack()) is not None:
            self._post(ack)

    def _met(self, incarnation: int) -> None:
        changed = self.incarnation not in (None, incarnation)
        self.incarnation = incarnation
        self.world.paths["a client resumes"] += changed
        now = self.world.now
        self._post(*(self.core.resume(now) if changed else self.core.ask_again(now)))

    def _say_all(self) -> None:
        while self.gateway and (utterance := self.core.sendable(self.world.now)) is not None:
            message = self.core.message(utterance)
            self._post(message, payload=utterance.data)
            if message["type"] == "Submit" and self.world.chance.random() < TWICE:
                self.world.paths["sent twice"] += 1
                self._post(message, payload=utterance.data)
        if len(self.got) >= len(self.wishes) and not self.core.closing:
            self.core.close("drain")
        if self.gateway and (closing := self.core.close_message()) is not None:
            self._post(closing)

    def _post(self, *batch: dict[str, Any], payload: Any = None) -> None:
        if batch and self.gateway:
            self.world.network.send(self.name, self.gateway, (_typed(batch), payload))

    # ---------------------------------------------------------------- the end

    def check(self) -> None:
        """One outcome for each utterance, in order, and the right one. A node that was stopped may have refused some,
        from some index on, and who has left has missed some."""
        world, stopped = self.world, self.world.supervisor.ended
        indices = [outcome.index for outcome in self.got]
        may_lack = stopped or self.has_left
        if indices != list(range(len(indices))) or (len(indices) < len(self.wishes) and not may_lack):
            raise Stuck(f"seed {world.seed}: {self.name} got {indices} of {len(self.wishes)}")
        for outcome, wish in zip(self.got, self.wishes, strict=False):
            if wrong := wish.judge(outcome, world.faults.deaths, stopped, world.is_cut_short):
                raise Stuck(f"seed {world.seed}: {self.name} {wish.index} ({wish.flaw or 'plain'}): {wrong}")
            for record in outcome.stages:
                self._check_model(record)
            self._note_path(outcome.code, outcome.error, wish)
        lost = [index for index, one in self.core.unended.items() if one.place is Place.ACCEPTED]
        kept_back = self.is_lazy and isinstance(self.core.failure, SessionClosed)  # it was told that the node stops
        if lost and not (world.is_cut_short or kept_back or self.has_left):
            raise Stuck(f"seed {world.seed}: {self.name} was left without what was accepted, {lost}")

    def _check_model(self, record: dict[str, Any]) -> None:
        """That it was a worker of this session's model."""
        model = self.model if record["stage"] == self.world.shared else ""
        worker = record.get("worker", "").partition("@")[0]
        if worker and (worker, record.get("model", "")) != (name_of(record["stage"], model), model):
            raise Stuck(f"seed {self.world.seed}: {self.name} has model {model!r}, and was given to {worker}")
        self.world.paths["a further model works"] += bool(worker and model)

    def _note_path(self, code: str, error: str, wish: Wish) -> None:
        paths, deaths = self.world.paths, self.world.faults.deaths
        paths[f"ended as {code or 'ok'}"] += 1
        paths["expired in a run"] += code == "expired" and "processing" in error
        paths["expired in a queue"] += code == "expired" and "pending" in error
        paths["poison outlives a scheduler"] += code == "poison" and deaths["scheduler"] > 0
        paths["poison outlives a gateway"] += code == "poison" and deaths["gateway"] > 0
        paths["somebody else ends as poison"] += code == "poison" and not wish.is_poison
        paths["an index is skipped"] += code == "gap" and wish.left_out == "skip"
        paths["an index is missed"] += code == "gap" and wish.left_out == "gap"


def _typed(batch: Any) -> tuple[Any, ...]:
    return tuple(msgspec.convert(message, ClientMessage) for message in batch)
