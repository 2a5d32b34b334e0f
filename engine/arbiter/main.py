"""The arbiter's shell: workers' questions and memory readings in, the book's answers out.

Before the answers of a turn leave, the book is in the journal, so no answer is ever heard that the next life of the
arbiter does not know of. What it had decided and not yet written when it died, nobody has heard.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import msgspec

from engine import failpoints, logs, process
from engine.arbiter import kept, words
from engine.arbiter.callers import Callers
from engine.arbiter.chatter import Chatter
from engine.arbiter.events import Action, Alarm, AskToLeave, FromWorker, Note, Sample, Send, Tell, Tick, Waits
from engine.arbiter.holders import Holders
from engine.arbiter.inbox import Inbox
from engine.arbiter.journal import Journal
from engine.arbiter.lease import EXTERNAL
from engine.arbiter.leases import Leases
from engine.arbiter.resident import Resident
from engine.arbiter.room import Reading
from engine.arbiter.sampler import Gpu, Sampler, declared_source, host_source, nvml_source
from engine.arbiter.samples import Samples
from engine.arbiter.spare import Spare
from engine.boot import ArbiterBoot, Boot, DevicePlan
from engine.limits import limits
from engine.process import Lifeline
from ipc.errors import PeerGone
from ipc.messages import (
    Denied,
    Drain,
    Failing,
    Gone,
    Granted,
    LeaseRequest,
    Leave,
    Measured,
    Orders,
    Release,
    Settled,
    Stop,
    ToArbiter,
    ToWorker,
    Up,
    Used,
)
from ipc.peers import split_peer
from ipc.sockets import Dealer, Poll, Router

RECONNECT_S = 3.0  # for a program that looks at its connection now and then
MAX_FRAME_BYTES = 2**16  # of those who ask: anybody's program may, and a frame is one turn's work
MAX_UNSENT_BYTES = 2**18  # that one of them leaves unread before it counts as gone
SAID = 64  # reasons why somebody was turned away, which are not said again
HOST = "cpu"  # the device whose memory is the machine's
SAMPLES_PER_AGE = 8  # readings in the time after which one is too old


class Arbiter:
    """One life of the arbiter."""

    def __init__(self, boot: Boot) -> None:
        assert isinstance(boot.body, ArbiterBoot)
        deadlines = boot.deadlines
        waits = Waits(deadlines.lease_wait_s, deadlines.settle_s, deadlines.unreadable_s, deadlines.grace_s)
        self._boot = boot
        self._poll = Poll()
        self._log = logs.get()
        own = [limits(plan) for plan in boot.body.devices if not plan.book]
        self._leases = Leases(own, waits, {plan.name: plan.book for plan in boot.body.devices if plan.book})
        self._samples = Samples()
        self._plans = boot.body.devices
        self._drained = boot.body.drained  # when this life began
        self._inbox = Inbox(frozenset(boot.body.workers))
        self._spare = Spare({plan.name: plan.total_bytes for plan in boot.body.devices})
        self._journal = Journal(boot.journal_fd)
        self._resident = Resident()
        self._samplers = samplers(boot.body.devices, deadlines.unreadable_s / SAMPLES_PER_AGE, self._resident)
        self._lifeline = Lifeline(boot)
        self._failures: dict[str, str] = {}
        self._callers = Callers(len(boot.body.workers), os.getppid())
        self._holders = Holders(self._poll, self._callers.most_programs)
        self._chatter = Chatter()
        self._turned_away: deque[str] = deque(maxlen=SAID)  # the last reasons
        self._expected_until = 0.0  # holders outside that an earlier arbiter has known may connect until then
        self._to_ask: dict[str, Leave] = {}  # ... and are to be asked to leave, when they have
        self._scheduler: Dealer | None = None
        self._stopping = False
        self._granting = False  # a grant leaves with this turn's answers

    def run(self) -> None:
        """Serve until told to stop."""
        try:
            self._remember()
        except ValueError as error:
            return self._give_up(f"the arbiter cannot read what the one before it kept ({error})")
        self._start()
        while not self._stopping:
            readable = self._wait()
            self._hear_supervisor()
            self._hear_deaths(readable)
            self._hear_workers()
            self._ask_late()
            if self._scheduler is not None:
                self._scheduler.drain()  # it says nothing; its greeting and its end arrive here
            self._hear_samplers()
            self._act(self._leases.handle(Tick(), process.now()))
            self._act(self._samples.look(self._leases.books()))
            self._act([*self._spare.look(self._leases.rooms())])
            self._watch_processes()
            self._keep()
            if granting := self._granting:
                failpoints.reach("arbiter.written")
            self._speak()
            if granting:
                failpoints.reach("arbiter.told")
                self._granting = False

    def _give_up(self, why: str) -> None:
        """Say so, and wait to be stopped: who does not know what was granted must not grant it again."""
        self._lifeline.start()
        self._poll.add(self._lifeline.link)
        self._poll.add(self._lifeline.death_fd)
        mend = "was the program replaced while the node ran? start the node again"
        self._lifeline.post(Failing(f"{why}; {mend}"))
        while not self._stopping:
            self._lifeline.beat("serving", process.now())
            self._lifeline.flush()
            self._wait()
            self._stopping = any(isinstance(message, Stop) for message in self._lifeline.read())

    def _start(self) -> None:
        self._router = Router(
            self._boot.endpoints["arbiter"], self._boot.incarnation, ToArbiter, max_frame_bytes=MAX_FRAME_BYTES,
            max_unsent_bytes=MAX_UNSENT_BYTES, admits=self._admits,
        )  # fmt: skip
        self._lifeline.start()
        self._act(self._leases.handle(Orders(self._drained), process.now()))
        self._watch_processes()
        for alarm in self._leases.alarms():
            self._lifeline.post(alarm)
        for thing in (self._router, self._lifeline.link, self._lifeline.death_fd, *self._fds()):
            self._poll.add(thing)
        for sampler in dict.fromkeys(self._samplers.values()):
            sampler.start()

    def _remember(self) -> None:
        """Go on where the arbiter before this one died. Raises ValueError when another version has kept it."""
        state = self._journal.read()
        if state is None:
            return
        book = kept.decode(state)
        self._leases.restore(book)
        self._samples = Samples(book.next_number - 1)
        for peer in [one.peer for device in book.devices for one in device.leases if one.external]:
            self._expected_until = process.now() + RECONNECT_S
            if not self._holders.watch(peer):  # it died while there was no arbiter
                self._act(self._leases.handle(Gone(*split_peer(peer)), process.now()))
        self._log.info("%d leases known from an earlier life", sum(len(device.leases) for device in book.devices))

    def _fds(self) -> list[int]:
        return [sampler.fileno() for sampler in dict.fromkeys(self._samplers.values())]

    def _wait(self) -> set[Any]:
        now = process.now()
        due = self._leases.due_in(now)
        beat = self._lifeline.due_in(now)
        readable = self._poll.wait(0.0 if self._inbox else beat if due is None else min(beat, due))
        if self._lifeline.death_fd in readable:
            process.leave(process.ORPHANED)
        return readable

    def _hear_supervisor(self) -> None:
        for message in self._lifeline.read():
            match message:
                case Stop():
                    self._stopping = True
                case Up(role="scheduler", incarnation=incarnation):
                    self._meet(incarnation)
                case Up(role=role, incarnation=incarnation):
                    self._inbox.announce(role, incarnation)
                case Gone() | Orders():
                    self._act(self._leases.handle(message, process.now()))
                case Drain():
                    self._log.debug("draining: leases end with their holders")

    def _meet(self, epoch: int) -> None:
        """Another life of the scheduler: it has heard nothing of what is lacking."""
        if self._scheduler is not None:
            self._poll.remove(self._scheduler)
            self._scheduler.close()
        boot = self._boot
        self._scheduler = Dealer(boot.endpoints["scheduler"], boot.role, boot.incarnation, ToWorker)
        self._scheduler.epoch = epoch
        self._poll.add(self._scheduler)
        for news in (*self._leases.wants.all(), *self._spare.all()):
            self._scheduler.post(news)

    def _hear_deaths(self, readable: set[Any]) -> None:
        """Of holders outside the node, whose deaths nobody else tells."""
        for news in self._holders.dead(readable):
            self._say_of(news.role, "%s has ended, and its lease with it", news.role)
            self._act(self._leases.handle(news, process.now()))

    def _admits(self, peer: str, pid: int) -> bool:
        """Whether that process may be here under this name."""
        if peer in self._router and self._is_squatted(peer) and self._is_for(pid, peer):
            self._router.dismiss(peer)  # its name is this one's
        why = self._callers.why_not(peer, pid, self._router.peers)
        if why and why not in self._turned_away:  # ZeroMQ tries again for ever, and a crowd is of many
            self._turned_away.append(why)
            self._log.warning("%.200r %s; it is not heard", peer, why)
        return not why

    def _is_for(self, pid: int, peer: str) -> bool:
        """Whether this process may speak for the program of that name."""
        holder = self._holders.process(peer)
        return not holder or self._callers.may_lease_for(pid, holder)

    def _is_squatted(self, peer: str) -> bool:
        """Whether who is there under that name has no right to it."""
        return not self._is_for(self._router.pid(peer), peer)

    def _hear_workers(self) -> None:
        refused: dict[str, str] = {}
        for peer, _, batch in self._router.drain():
            if self._is_squatted(peer):
                why = "a lease is for the process that asks for it, or for one that it has started"
                self._router.post(peer, Denied(why))
            elif peer not in refused:
                refused |= self._inbox.put(peer, batch)
        for peer, why in refused.items():
            self._say_of(peer, "%.200r %s: it gets no memory, and is not heard", peer, why, level=logging.WARNING)
            self._router.dismiss(peer)
        for peer, message in self._inbox.take(self._router.__contains__):
            self._hear(peer, message)

    def _hear(self, peer: str, message: Any) -> None:
        if peer.startswith(EXTERNAL) and not self._holders.watch(peer):
            return self._router.post(peer, Denied("the process that this lease is for is not there"))
        if isinstance(message, LeaseRequest) and peer.startswith(EXTERNAL):
            # Its name has been looked at, and says which process it is; what else it says of that is not asked.
            message = msgspec.structs.replace(message, pid=self._holders.process(peer), base_bytes=0)
        if isinstance(message, (LeaseRequest, Settled, Release)):
            failpoints.reach("arbiter.asked")
            self._act(self._leases.handle(FromWorker(peer, message), process.now()))
        if isinstance(message, Used):
            self._samples.hear(peer, message)
        if isinstance(message, Release) and peer.startswith(EXTERNAL) and not self._leases.knows(peer):
            self._say_of(peer, "%s has given its lease back", peer.rpartition("#")[0])
        return self._forget_idle(peer)

    def _forget_idle(self, peer: str) -> None:
        """A program that neither holds a lease nor waits for one is not watched: each takes a descriptor."""
        if peer.startswith(EXTERNAL) and not self._leases.knows(peer):
            self._holders.forget(peer)

    def _hear_samplers(self) -> None:
        for sampler in dict.fromkeys(self._samplers.values()):
            news, failure = sampler.take()
            if failure and failure != self._failures.get(sampler.name):
                self._log.warning("%s memory cannot be read: %s", sampler.name, failure)
            if failure or news:
                self._failures[sampler.name] = failure
            for one in news:
                if isinstance(one, Reading) and one.processes:
                    one = replace(one, processes=self._holders.gather(one.processes))
                self._act(self._leases.handle(one, process.now()))

    def _watch_processes(self) -> None:
        """Those of who holds leases of the machine's memory, before they hear that they do."""
        books = [leases for memory, leases in self._leases.books() if memory.limits.name == HOST]
        leases = [one for one in chain(*books) if one.pid]
        programs = {one.pid for one in leases if one.external}
        self._resident.watch({one.pid for one in leases} - programs, programs)

    def _ask_late(self) -> None:
        """Ask to leave who is to: on its connection, or by a signal where it has none and will have none."""
        for peer, message in list(self._to_ask.items()):
            if peer in self._router and not self._is_squatted(peer):
                self._router.post(peer, message)
            elif process.now() < self._expected_until:
                continue
            else:
                self._holders.ask_to_leave(peer)
            del self._to_ask[peer]

    def _act(self, actions: Sequence[Action | Measured]) -> None:
        for action in actions:
            match action:
                case Send(peer, message):
                    self._granting = self._granting or isinstance(message, Granted)
                    level = logging.DEBUG if words.is_told_elsewhere(peer, message) else logging.INFO
                    self._say_of(peer, "%s", words.told(peer, message), level=level)
                    self._router.post(peer, message)
                    if isinstance(message, Denied):
                        self._forget_idle(peer)
                case AskToLeave(peer, message):
                    self._say_of(peer, "%s is asked to leave: its memory is needed", peer)
                    self._to_ask[peer] = message
                    self._ask_late()
                case Tell(message):
                    if self._scheduler is not None:
                        self._scheduler.post(message)
                case Alarm(message):
                    self._log.error("%s", words.quarantined(message.device, message.reason))
                    self._lifeline.post(message)
                case Note(text):
                    self._log.warning("%s", text)
                case Sample(device):
                    self._samplers[device].ask()
                case Measured():
                    self._lifeline.post(action)

    def _say_of(self, peer: str, text: str, *arguments: Any, level: int = logging.INFO) -> None:
        """Log what becomes of somebody, as far as it is worth the log."""
        if self._chatter.admits(peer):
            self._log.log(level, text, *arguments)

    def _keep(self) -> None:
        """Write the book down. One too large for the journal is counted and said once; the node goes on."""
        state = kept.encode(self._leases.keep())
        if not self._journal.write(state) and self._journal.too_large == 1:
            sizes = f"{words.gib(len(state))}, its journal takes {words.gib(self._journal.most_bytes)}"
            self._log.error("the book has %s: what is granted from now on would not outlive this arbiter", sizes)

    def _speak(self) -> None:
        now = process.now()
        for text in self._chatter.left_out(now):
            self._log.info("%s", text)
        for peer in self._router.flush():
            self._log.debug("%s is not there any more", peer)  # its Gone comes from the supervisor
            self._router.dismiss(peer)  # if it is there, and does not read
        if self._scheduler is not None:
            with suppress(PeerGone):  # it died; its next life is told what is still lacking
                self._scheduler.flush()
        self._lifeline.beat("serving", now)
        if self._lifeline.report_due(now):
            self._lifeline.report(self._report(now), now)
        self._lifeline.flush()

    def _report(self, now: float) -> dict[str, Any]:
        """The book's report, with a row for each device: one without a book of its own has the figures of its book."""
        report = self._leases.snapshot(now)
        report["counts"]["not_kept"] = self._journal.too_large
        rows = {}
        for plan in self._plans:
            row = {**report["devices"][plan.book or plan.name], "quarantined": report["quarantined"].get(plan.name, "")}
            row |= {"uuid": plan.uuid, "memory_source": plan.memory_source, "book": plan.book}
            row["drained"] = plan.name in report["drained"]
            rows[plan.name] = row | ({"grantable_bytes": 0} if row["quarantined"] or row["drained"] else {})
        return {**report, "devices": rows}


def samplers(devices: tuple[DevicePlan, ...], period_s: float, resident: Resident) -> dict[str, Sampler]:
    """Book -> the sampler of its source; one for the machine's memory, one for each GPU, one for what is declared.

    A GPU's is there for its health too; where it tells no memory, it stands under the GPU's UUID, and is nobody's book.
    """
    own = [plan for plan in devices if not plan.book]
    # What a GPU without memory of its own has of the machine's, no process is shown to have.
    unified = any(plan.memory_source == "unified" for plan in devices)
    host = [plan.name for plan in own if plan.memory_source in ("host", "unified")]
    declared = {plan.name: plan.total_bytes for plan in own if plan.memory_source == "declared"}
    told = [plan.name for plan in own if plan.memory_source in ("nvml", "mig")]
    found: dict[str, Sampler] = {}
    if host:
        source = host_source(host) if unified else host_source(host, processes=resident.read)
        found |= dict.fromkeys(host, Sampler("host", source, period_s))
    if declared:
        found |= dict.fromkeys(declared, Sampler("declared", declared_source(declared), period_s))
    for plan in devices:
        if plan.uuid:
            gpu = Gpu(plan.uuid, plan.ecc_errors, tells_memory=plan.name in told)
            source = nvml_source(plan.name, gpu)
            found[plan.name if gpu.tells_memory else plan.uuid] = Sampler(plan.name, source, period_s)
    return found


def main(argv: list[str] | None = None) -> None:
    boot = process.enter(argv)
    Arbiter(boot).run()
    process.leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
