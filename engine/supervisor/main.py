"""The supervisor's shell: makes the memory and the sockets, then loops around the lifecycle core.

``run`` is the foreground node of ``run_node.py serve``; ``main`` is the same in a process of its own, started by
``engine.Node``: configuration in an inherited memfd, the host's life as a pipe, the ready line back through another.

One turn: wait for sockets, pidfds, output pipes, the signal pipe and the host; feed everything to the core; carry out
its actions; one frame per peer. Signal handlers only enqueue: the interpreter writes the number into a pipe.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec

from engine import (
    choices,
    corrections_file,
    devices,
    exits,
    failpoints,
    knobs,
    loading,
    logs,
    placement,
    placement_words,
    process,
    published,
)
from engine.boot import ArbiterBoot, SchedulerBoot
from engine.config import Config
from engine.supervisor import claims, endpoints, environment, health, plan, stats, survey
from engine.supervisor.children import Child, Children
from engine.supervisor.claims import Claims
from engine.supervisor.events import (
    Announce,
    End,
    Exited,
    Heard,
    HostGone,
    NotSpawned,
    Say,
    Spawned,
    StopAsked,
    Tick,
    Warn,
)
from engine.supervisor.folder import RunFolder, base_folder
from engine.supervisor.lifecycle import Lifecycle, Phase
from engine.supervisor.measuring import Measuring
from engine.supervisor.notify import Watchdog, notify
from engine.supervisor.operators import Operators
from engine.supervisor.orders import VERBS, Orders
from engine.supervisor.roster import Post, Roster, Signal, Spawn
from ipc import memory
from ipc.errors import ConfigError, DragomanError
from ipc.messages import Measured, ToSupervisor
from ipc.peers import peer_name, split_peer
from ipc.ring import segment_bytes
from ipc.sockets import Poll, Router

JOURNAL_BYTES = 2**21  # what the arbiter must not forget
CLAIM_AGAIN_S = 0.1  # a lock that somebody holds is asked for again after so long
NEWS_S = 1.0  # who waits for the node hears how far it is when that has changed, at most so often ...
SAME_NEWS_S = 10.0  # ... and so often when it has not
KEPT_LINES = 500  # of the log, for who asks for its end
INCARNATION = 1  # a node has one supervisor in its life
HOOKS = "DRAGOMAN_TEST_HOOKS"
ROUTERS = ("supervisor", "scheduler", "arbiter")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MODULES = {"scheduler": "engine.scheduler.main", "gateway": "engine.gateway.main", "arbiter": "engine.arbiter.main"}
WORKER_MODULE = "engine.worker.main"

Ready = Callable[[dict[str, Any]], None]


class Supervisor:
    """One node, from its folder to its exit code.

    announce: called with each line for the user. ready: called with {"news": line} while the node starts, then once
    with {"endpoints", "ctl", "mode", ...} or with {"error"}. host_fd: a pipe whose end means that the embedding process
    is dead (-1: none). modules: role (or "worker") -> module, instead of the real ones.
    """

    def __init__(
        self,
        config: Config,
        announce: Callable[[str], None],
        *,
        publish: bool = False,
        host_fd: int = -1,
        ready: Ready | None = None,
        modules: Mapping[str, str] | None = None,
    ) -> None:
        self.config = choices.spread(config)
        self._announce = announce
        self._publish = publish
        self._host_fd = host_fd
        self._embedded = host_fd >= 0
        self._told_ready = False
        self._ready = ready or (lambda news: None)
        self._modules = {**MODULES, "worker": WORKER_MODULE, **(modules or {})}
        self._hooks = parse_hooks(os.environ.get(HOOKS, ""))
        self._tail: deque[str] = deque(maxlen=KEPT_LINES)
        self._poll = Poll()
        self._watched: dict[int, Child] = {}  # pidfd -> child
        self._outputs: dict[int, Child] = {}  # output pipe -> child

    def run(self) -> int:
        """Start, serve, stop; the exit code. Raises DragomanError when the node cannot start."""
        self.folder = RunFolder(base_folder())
        self.plan, self._devices = self._make_plan()
        self._children = Children(logs.LineHandler(tail=self._tail))
        self._claims = Claims(self.folder.path, shared=self.config.devices.share)
        try:
            self._claim_gpus()
            endpoints.check_free(self.config.node.endpoints)  # who has just left a GPU has left its address too
            return self._serve()
        finally:
            self._claims.close()

    def _serve(self) -> int:
        self.folder.open()
        try:
            self._open()
            try:
                return self._loop()
            finally:
                self._measuring.keep()
                self._children.kill_all(self.config.deadlines.stop_s)
                self._router.close()
                self._operators.close()
        finally:
            self.folder.close()

    # ------------------------------------------------------------ start

    def _claim_gpus(self) -> None:
        """Wait for the GPUs that this node's workers will use; in one order, so that no two nodes wait for each other.

        Raises DragomanError naming who has one when ``gpu_wait_s`` is over.
        """
        names = {self.plan.uuids[role]: worker.device for role, worker in self.plan.workers.items()}
        until = process.now() + self.config.deadlines.gpu_wait_s
        for uuid in sorted(names.keys() - {""}):
            told = ""
            while holder := self._claims.take(uuid):
                if process.now() >= until:
                    raise DragomanError(f"{names[uuid]} ({uuid}) is in use by {holder}", claims.SHARE)
                if holder != told:
                    self._tell_news(f"waiting for {names[uuid]}, which is in use by {holder}")
                    told = holder
                if self._host_fd in select.select([self._host_fd] if self._embedded else [], [], [], CLAIM_AGAIN_S)[0]:
                    raise DragomanError("the program that this node is part of has ended")

    def _make_plan(self) -> tuple[plan.Plan, dict[str, str]]:
        section = self.config.devices
        seen = devices.look(section.use, declared=section.declared_bytes, limit_s=self.config.deadlines.driver_s)
        found, self._left_out = devices.usable(seen), devices.silent(seen)
        for name in devices.unknown(section.max_bytes, seen):
            there = ", ".join(device.name for device in found)
            logs.get().warning("devices.max_bytes bounds %s, which this node does not use: it uses %s", name, there)
        file = corrections_file.place(section.estimates_file, os.environ)
        history = corrections_file.read(file)
        made = plan.make(
            self.config,
            found,
            devices.host_memory(),
            len(os.sched_getaffinity(0)),
            survey.survey(self.config),
            self.folder.endpoint("client"),
            history,
            self._left_out,
        )
        self._measuring = Measuring(made.needs, corrections_file.ours(file))
        self._shared = [device.name for device in found if device.mps]
        return made, {device.name: device.kind for device in found}

    def _open(self) -> None:
        """Everything a child may need exists before the first one starts."""
        self._logger = logs.configure("supervisor", self.folder.node, self.config.node.log_level, self._tail)
        if self._hooks:
            self._logger.warning("test hooks are in force: %s", ", ".join(sorted(self._hooks)))
        self._rings = {name: self._make_ring(name, blocks) for name, blocks in self.plan.rings.items()}
        self._journal_fd = memory.create("journal", JOURNAL_BYTES)
        self._death_fd, self._life_fd = os.pipe()  # the writing end stays here, and closes with this process
        self._endpoints = {role: self.folder.endpoint(role) for role in ROUTERS}
        self._router = Router(self._endpoints["supervisor"], INCARNATION, ToSupervisor)
        self._operators = Operators(self.folder.endpoint("ctl"), self._verbs())
        deadlines = self.config.deadlines
        roster = Roster(self.plan.roles, deadlines, self.config.node.restart_budget)
        pinned = {name: section.pinned for name, section in self.config.stages.items()}
        workers = [worker for stage in self.plan.scheduler.stages for worker in stage.workers]
        orders = Orders(workers, pinned, self._devices)
        self._life = Lifecycle(roster, self._endpoints, deadlines, self.plan.may_fail, orders, self._shared)
        self._life.quarantined |= self._left_out
        self._signal_fd = catch_signals()
        for thing in (self._router, self._operators.door, self._signal_fd):
            self._poll.add(thing)
        if self._host_fd >= 0:
            self._poll.add(self._host_fd)
        for line in self._opening_lines():
            self._announce(line)

    def _make_ring(self, name: str, blocks: int) -> tuple[int, int]:
        writable = memory.create(f"ring:{name}", segment_bytes(blocks))
        return writable, memory.reopen_read_only(writable)

    def _opening_lines(self) -> Iterator[str]:
        made = self.plan
        yield f"node {self.folder.node}, devices {', '.join(self._devices)}, operators at {self.folder.endpoint('ctl')}"
        for stage in made.scheduler.stages:
            if stage.absent:
                yield f"stage {stage.name} is absent ({stage.absent}): its utterances skip it"
        yield from placement_words.lines(made.placement)
        for name in self.config.pipelines.keys() - made.config.pipelines.keys():
            yield f"pipeline {name} is left out: all its stages are absent"
        sizes = ", ".join(f"{name} {segment_bytes(blocks) / 2**20:.1f}" for name, blocks in made.rings.items())
        yield f"rings: {made.ring_bytes / 2**20:.1f} MiB of shared memory ({sizes})"

    # ------------------------------------------------------------ the loop

    def _loop(self) -> int:
        self._end: End | None = None
        self._news, self._news_at = "", process.now()
        self._watchdog = Watchdog()
        self._handle(Tick())
        while self._end is None:
            self._turn()
            self._operators.answer()
            self._handle(Tick())
            self._router.flush()
        return self._leave(self._end)

    def _turn(self) -> None:
        """Wait until something happens or is due, and take in everything that has happened."""
        at = process.now()
        self._watchdog.beat(at)
        readable = self._poll.wait(max(0.0, min(self._life.next_due(at) - at, self._watchdog.due_in(at))))
        self._read_processes()
        self._read_outputs(readable)
        self._read_deaths(readable)
        self._read_signals(readable)
        self._say_how_far(at)

    def _handle(self, event: Any) -> None:
        for action in self._life.handle(event, process.now()):
            self._act(action)

    def _act(self, action: Any) -> None:
        match action:
            case Post(role, incarnation, message):
                self._router.post(peer_name(role, incarnation), message)
            case Spawn():
                self._spawn(action)
            case Signal(role, number):
                self._children.signal(role, number)
            case Say(text):
                notify("STOPPING=1")
                self._announce(text)
            case Warn(text):
                self._logger.warning(text)
            case Announce():
                self._tell_ready(action)
            case End():
                self._end = action

    def _spawn(self, wanted: Spawn) -> None:
        boot = self.plan.boot(
            wanted.role,
            wanted.incarnation,
            node=self.folder.node,
            parent_pid=os.getpid(),
            death_fd=self._death_fd,
            endpoints=self._endpoints,
            descriptors=self._rings,
            journal_fd=self._journal_fd if wanted.role == "arbiter" else -1,
            hooks=self._hooks,
        )
        standing = self._life.orders.standing()
        if isinstance(boot.body, SchedulerBoot):
            boot = msgspec.structs.replace(boot, body=msgspec.structs.replace(boot.body, orders=standing))
        elif isinstance(boot.body, ArbiterBoot):
            boot = msgspec.structs.replace(boot, body=msgspec.structs.replace(boot.body, drained=standing.drained))
        kind = "worker" if "@" in wanted.role else wanted.role
        inherited = (self._death_fd, *(grant.fd for grant in boot.rings))
        inherited += (boot.journal_fd,) if boot.journal_fd >= 0 else ()
        if uuid := self.plan.uuids.get(wanted.role, ""):
            inherited += self._claims.fds(uuid)
        try:
            child = self._children.spawn(boot, self._modules[kind], self._environment(wanted.role), inherited)
        except OSError as error:
            self._handle(NotSpawned(wanted.role, str(error)))
            return
        self._watched[child.pidfd] = self._outputs[child.output.fd] = child
        self._poll.add(child.pidfd)
        self._poll.add(child.output.fd)
        self._handle(Spawned(wanted.role, child.pid, child.start_time))

    def _environment(self, role: str) -> dict[str, str]:
        uuid = self.plan.uuids.get(role, "")
        return environment.compose(
            os.environ,
            node=self.folder.node,
            root=environment.package_root(),
            device_uuid=uuid,
            threads=self.plan.threads(role),
            library_folders=environment.nvidia_library_folders(sys.path) if uuid else (),
        )

    def _read_processes(self) -> None:
        for peer, _, batch in self._router.drain():
            role, incarnation = split_peer(peer)
            for message in batch:
                self._handle(Heard(role, incarnation, message))
                if isinstance(message, Measured):
                    self._measuring.take(message, time.time())
        self._measuring.keep_when_due(process.now())

    def _read_outputs(self, readable: set[Any]) -> None:
        for fd in readable & self._outputs.keys():
            if not self._outputs[fd].output.drain():
                self._poll.remove(fd)
                del self._outputs[fd]

    def _read_deaths(self, readable: set[Any]) -> None:
        for fd in readable & self._watched.keys():
            child = self._watched.pop(fd)
            self._poll.remove(fd)
            if self._outputs.pop(child.output.fd, None):
                self._poll.remove(child.output.fd)
            code = self._children.reap(child)
            self._handle(Exited(child.role, code, child.output.last))

    def _read_signals(self, readable: set[Any]) -> None:
        if self._signal_fd in readable:
            for _ in os.read(self._signal_fd, 64):
                self._handle(StopAsked())
        if self._host_fd in readable and self._host_fd >= 0:
            self._poll.remove(self._host_fd)
            self._host_fd = -1
            self._handle(HostGone())

    # ------------------------------------------------------------ what operators may ask

    def _verbs(self) -> dict[str, Callable[[dict[str, str]], dict[str, Any]]]:
        """Name -> what answers it."""
        orders = {verb: partial(self.order, verb) for verb in VERBS}
        return {
            "stats": lambda args: self.stats(),
            "health": lambda args: self.health(),
            "log": lambda args: {"lines": list(self._tail)},
            **orders,
            "drain": lambda args: self.order("drain", args) if args else self.drain(),
        }

    def order(self, verb: str, args: Mapping[str, str]) -> dict[str, Any]:
        """An operator's order about ``args["target"]``: what is changed by it, and the workers it is about."""
        target, value, usual = args.get("target", ""), None, None
        if verb == "set":
            target, value = knobs.read(self.config, target)
            usual = knobs.configured(self.config, target)
        order = self._life.order(verb, target, process.now(), value=value, usual=usual)
        self._logger.info("an operator orders: %s %s", verb, args["target"])
        for action in order.actions:
            self._act(action)
        more = {"value": value} if verb == "set" else {"lost": order.lost} if order.lost else {}
        return {"verb": verb, "target": target, "workers": order.roles, **more}

    def stats(self) -> dict[str, Any]:
        """The statistics document."""
        name, rings, now = self.folder.node, self.plan.ring_bytes, process.now()
        placed = placement_words.document(placement.measured(self.plan.placement, stats.load_times(self._life)))
        rows = self._measuring.rows()
        return stats.compose(name, self._life, self._devices, rings, self.health(), now, os.getpid(), placed, rows)

    def health(self) -> dict[str, Any]:
        """Whether the node and each stage do their work, and why not."""
        judged = health.judge(self._life, self.config.deadlines, process.now())
        return {**judged, "publishes": self._publish}

    def drain(self) -> dict[str, Any]:
        """Begin to drain, once; how many utterances are in flight."""
        if self._life.phase in (Phase.STARTING, Phase.SERVING):
            self._handle(StopAsked())
        while self._life.is_counting and self._end is None:
            self._router.flush()
            self._turn()
            self._handle(Tick())
        return {"in_flight": self._life.in_flight}

    # ------------------------------------------------------------ ready, and the end

    def _say_how_far(self, now: float) -> None:
        """Who waits for the node to be ready hears which stages it waits for."""
        if self._life.phase is not Phase.STARTING or now < self._news_at + NEWS_S:
            return
        text = loading.words(self._life.roster.snapshot(now))
        if text and (text != self._news or now >= self._news_at + SAME_NEWS_S):
            self._tell_news(text)
            self._news, self._news_at = text, now

    def _tell_news(self, text: str) -> None:
        """A line about the start, for the user here or for the program that waits for the ready line."""
        if self._embedded:
            self._ready({"news": text})
        else:
            self._announce(text)

    def _tell_ready(self, news: Announce) -> None:
        if self._publish:
            other = published.newest(self.folder.base)
            self.folder.publish()
            if other is not None:
                self._announce(f"another node of this user runs ({other.name}); clients find this one now")
        for endpoint in news.endpoints:
            self._announce(f"clients at {endpoint}")
        self._announce(f"mode {news.mode} ({news.mode_reason})")
        self._announce("ready")
        self._told_ready = True
        self._ready({
            "node": self.folder.node,
            "endpoints": list(news.endpoints),
            "ctl": self.folder.endpoint("ctl"),
            "mode": news.mode,
            "mode_reason": news.mode_reason,
        })  # fmt: skip
        notify("READY=1")

    def _leave(self, end: End) -> int:
        """The exit code. Raises ConfigError for what only showed when a model was loaded."""
        if end.code == exits.CONFIGURATION and not self._told_ready:
            raise ConfigError(end.line)
        if end.line:
            if not self._told_ready:
                self._ready({"error": end.line, "code": end.code})
            if self._told_ready or not self._embedded:  # a host that still waits for ready tells its user itself
                print(end.line, file=sys.stderr, flush=True)
        return end.code


def run(config: Config, *, foreground: bool = True, announce: Callable[[str], None] = print, **options: Any) -> int:
    """Run a node until it ends; returns its exit code. Call it from the main thread.

    ``foreground``: this is the node that clients find by themselves. ``options``: see ``Supervisor``.
    Raises DragomanError (ConfigError: exit code 78) with one line when the node cannot start.
    """
    process.require_linux()
    process.set_title("drg:supervisor")
    process.allow_descriptors()
    return Supervisor(config, announce, **{"publish": foreground, **options}).run()


def parse_hooks(text: str) -> dict[str, str]:
    """ "name=value,name=value" as a dict. Raises ConfigError."""
    pairs = [entry.partition("=") for entry in text.split(",") if entry.strip()]
    if any(not sign for _, sign, _ in pairs):
        raise ConfigError(f"{HOOKS} is {text!r}", "write name=value,name=value")
    hooks = {name.strip(): value.strip() for name, _, value in pairs}
    failpoints.check(hooks)
    return hooks


def catch_signals() -> int:
    """Make the stop signals readable on a descriptor, and do nothing else."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
            signal.signal(number, lambda *_: None)
    return reading


def main() -> None:
    """A node in a process of its own, for ``engine.Node``."""
    parser = argparse.ArgumentParser(description="A Dragoman node embedded in another program; started by it.")
    parser.add_argument("--config-fd", type=int, required=True)
    parser.add_argument("--host-fd", type=int, required=True, help="pipe whose end means that the host is dead")
    parser.add_argument("--ready-fd", type=int, required=True, help="pipe for the ready line")
    parser.add_argument("--publish", action="store_true", help="be the node that clients find by themselves")
    parser.add_argument("--modules", type=json.loads, default={}, help="role -> module, for tests")
    args = parser.parse_args()
    config = msgspec.msgpack.decode(os.pread(args.config_fd, os.fstat(args.config_fd).st_size, 0), type=Config)
    for fd in (args.config_fd, args.host_fd, args.ready_fd):
        os.set_inheritable(fd, False)

    def tell(news: dict[str, Any]) -> None:
        try:
            os.write(args.ready_fd, json.dumps(news).encode() + b"\n")
        except BrokenPipeError:
            return  # the host stopped listening; if it is dead, its pipe says so

    try:
        options = {"host_fd": args.host_fd, "ready": tell, "modules": args.modules}
        code = run(config, foreground=args.publish, announce=lambda line: None, **options)
    except DragomanError as error:
        code = exits.CONFIGURATION if isinstance(error, ConfigError) else exits.FAILED
        tell({"error": error.text, "mend": error.mend, "code": code})
    process.leave(code)


if __name__ == "__main__":
    main()
