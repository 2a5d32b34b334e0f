"""The scheduler's shell: reads its sockets, feeds the core, carries its actions out.

When the supervisor says that a worker is gone, what that worker had sent may still be on its way: the shell reads to
the end of its stream, for at most ``DRAIN_S``, and only then tells the core.
"""

from __future__ import annotations

import random
from typing import Any

from engine import failpoints, logs
from engine.boot import Boot, SchedulerBoot
from engine.process import ORPHANED, Lifeline, enter, leave, now
from engine.scheduler.book import GATEWAY, SUPERVISOR
from engine.scheduler.scheduler import Scheduler
from ipc.errors import PeerGone
from ipc.messages import Denied, Drain, Gone, Here, Loaded, Stop, ToScheduler, Up
from ipc.peers import peer_name
from ipc.sockets import Poll, Router

DRAIN_S = 1.0
NEWS = (Here, Loaded, Denied)  # who can work has changed: the node's health hangs on it, so it is reported at once
LATE_S = 1.0  # so much later than asked for, we were stopped, and perhaps the whole node was


class Shell:
    """See the module's docstring."""

    def __init__(self, boot: Boot) -> None:
        assert isinstance(boot.body, SchedulerBoot)
        self.core = Scheduler(boot.body, boot.deadlines, boot.incarnation, boot.hooks, random.random)
        self.core.book.trace = boot.log_level == "debug"
        self.router = Router(boot.endpoints["scheduler"], boot.incarnation, ToScheduler, epoch=boot.incarnation)
        self.lifeline = Lifeline(boot)
        self.poll = Poll()
        self.dying: dict[str, tuple[Gone, float]] = {}  # peer -> its Gone, when to stop waiting
        self.leaving = False
        self.looked_at = now()
        self.old_epoch = 0

    def run(self) -> None:
        """Start, then one turn after another until told to stop."""
        self.lifeline.start()
        for thing in (self.router, self.lifeline.link, self.lifeline.death_fd):
            self.poll.add(thing)
        while not self.leaving:
            readable = self.wait()
            if self.router in readable:
                self.read_peers()
            if self.lifeline.link in readable:
                self.read_supervisor()
            if self.dying:
                self.bury()
            self.act()
            self.tell()

    def wait(self) -> set[Any]:
        """What is readable, as soon as something is or something is due."""
        until = self.lifeline.pulse_at
        if (deadline := self.core.next_deadline()) is not None and deadline < until:
            until = deadline
        timeout = max(0.0, until - now())
        if self.dying:  # the end of a stream wakes us too
            timeout = max(0.0, min(timeout, min(by for _, by in self.dying.values()) - now()))
        readable = self.poll.wait(timeout)
        self.notice_pause(timeout)
        if self.lifeline.death_fd in readable:
            leave(ORPHANED)
        return readable

    def notice_pause(self, waited: float = 0.0) -> None:
        """Since the last look more time may have passed than was waited: then we were stopped, wherever we stood."""
        late = now() - self.looked_at - waited
        self.looked_at = now()
        if late > LATE_S:
            logs.get().warning("this process was stopped for %.1f s: all limits are moved by as much", late)
            self.core.fleet.watchdog.forgive(late)

    def read_peers(self) -> None:
        time = now()
        for peer, epoch, batch in self.router.drain():
            if epoch != self.router.epoch:
                self.old_epoch += 1
                continue
            failpoints.reach("scheduler.read")
            for message in batch:
                self.core.handle(peer, message, time)
                if isinstance(message, NEWS):
                    self.lifeline.hurry()

    def read_supervisor(self) -> None:
        for message in self.lifeline.read():
            match message:
                case Stop():
                    self.leaving = True
                case Gone(role=role, incarnation=incarnation):
                    self.dying[peer_name(role, incarnation)] = (message, now() + DRAIN_S)
                case Up():
                    continue  # peers speak first; their Here says all
                case _:
                    self.core.handle(SUPERVISOR, message, now())
                    if isinstance(message, Drain):  # the supervisor tells how many are in flight, and waits for this
                        self.lifeline.hurry()
                        self.report(now())

    def bury(self) -> None:
        """Tell the core of the dead whose last words have been read."""
        for peer, (message, until) in list(self.dying.items()):
            if now() < until and peer in self.router:
                continue
            del self.dying[peer]
            self.lifeline.hurry()
            self.core.handle(SUPERVISOR, message, now())

    def act(self) -> None:
        """Carry out what the core decided: one frame per peer, the workers' first."""
        self.notice_pause()
        mail, notes = self.core.turn(now())
        if not mail and not notes:
            return
        failpoints.reach("scheduler.decided")
        for note in notes:
            getattr(logs.get(), note.level)(note.text)
        for message in mail.pop(SUPERVISOR, ()):
            self.lifeline.post(message)
        told = mail.pop(GATEWAY, None)
        if told is not None:
            mail[self.core.book.gateway] = told
        for peer, batch in mail.items():
            if batch is told:
                failpoints.reach("scheduler.sent")
            try:
                self.router.send(peer, batch)
            except PeerGone:
                logs.get().debug("%s takes no messages; its death will be told", peer)
        failpoints.reach("scheduler.told")

    def tell(self) -> None:
        time = now()
        if time < self.lifeline.pulse_at:
            return self.lifeline.flush()
        self.lifeline.beat("running", time)
        if self.lifeline.report_due(time):
            self.report(time)
        self.lifeline.flush()

    def report(self, time: float) -> None:
        counted = {"old_epoch": self.old_epoch, "bad_frames": self.router.bad_frames}
        self.lifeline.report({**self.core.snapshot(time), **counted}, time)


def main() -> None:
    boot = enter()
    Shell(boot).run()
    leave(0)


if __name__ == "__main__":
    main()
