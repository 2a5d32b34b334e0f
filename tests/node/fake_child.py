"""Stand-ins for the node's processes: they speak the supervisor's protocol and do nothing else.

What a role does beyond that is told by its environment's test hooks (``boot.hooks``): ``ROLE=behaviour`` with

* ``mute``      never says anything
* ``die``       ends with code 1 as soon as it is told of another process
* ``boot``      cannot boot: says so and ends with BOOT_FAILED
* ``once``      in its first life dies by SIGKILL once it has reported ``loaded``
* ``deaf``      never obeys Stop, nor SIGTERM
* ``native``    goes into a native call that never returns
* ``parent``    has a child of its own
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess

from engine import logs
from engine.boot import Boot, GatewayBoot
from engine.process import BOOT_FAILED, Lifeline, enter, leave, now
from ipc.messages import Condemn, Drain, Drained, Flushed, Ready, Serve, Serving, Silent, Stop, ToScheduler, Up
from ipc.sockets import Poll, Router


class Fake:
    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.behaviour = boot.hooks.get(boot.role, "")
        self.lifeline = Lifeline(boot)
        self.poll = Poll()
        self.up: set[str] = set()
        self.phase = "loaded" if "@" in boot.role else "serving"
        self.workers = {w.role for s in getattr(boot.body, "stages", ()) for w in s.workers}

    def run(self) -> None:
        if self.behaviour == "boot":
            logs.get().error("the model file is broken")
            leave(BOOT_FAILED)
        if self.boot.role in self.boot.endpoints:
            self.router = Router(self.boot.endpoints[self.boot.role], self.boot.incarnation, ToScheduler)
        self.poll.add(self.boot.death_fd)
        if self.behaviour == "mute":
            self.poll.wait(None)
            leave(0)
        self.lifeline.start()
        self.poll.add(self.lifeline.link)
        if self.behaviour == "native":
            self.lifeline.flush()
            ctypes.PyDLL(None).sleep(1000)  # keeps the interpreter's lock
        if self.behaviour == "parent":
            subprocess.Popen(["sleep", "1000"])
        while True:
            if self.boot.death_fd in self.poll.wait(self.lifeline.due_in(now())):
                leave(0)
            for message in self.lifeline.read():
                self.obey(message)
            self.lifeline.beat(self.phase, now())
            if self.lifeline.report_due(now()):
                self.lifeline.report({"active": 0, "pid": os.getpid(), "seen": sorted(self.up)}, now())
            self.lifeline.flush()
            if self.behaviour == "once" and self.boot.incarnation == 1 and "scheduler" in self.up:
                os.kill(os.getpid(), signal.SIGKILL)

    def obey(self, message: object) -> None:
        match message:
            case Up(role, incarnation):
                self.up.add(role)
                if self.behaviour == "die":
                    leave(1)
                hopeless = "die" in self.boot.hooks.values()
                if self.boot.role == "scheduler" and not hopeless and self.workers | {"gateway", "arbiter"} <= self.up:
                    self.lifeline.post(Ready("pipelined", "in a test"))
            case Serve() if isinstance(self.boot.body, GatewayBoot):
                self.lifeline.post(Serving(self.boot.body.endpoints))
            case Drain():
                self.lifeline.post(Flushed() if self.boot.role == "gateway" else Drained())
            case Silent(worker, incarnation):
                self.lifeline.post(Condemn(worker, incarnation, "silent with nothing to do"))
            case Stop() if self.behaviour != "deaf":
                leave(0)


if __name__ == "__main__":
    Fake(enter()).run()
