"""A node inside another program: ``with Node("node.toml") as node: ...``.

Theory: the host program gets none of the node's processes into its own. ``start`` runs one supervisor as a process of
its own (never ``multiprocessing``: a script without a main guard, a notebook or a thread may start one) and waits for
its ready line. Host and node are tied by one pipe alone: the supervisor reads its end, and when the host dies, however
it dies, everything of the node dies with it. The death signal of the kernel would not do here, because it is sent when
the starting *thread* ends. Ctrl-C in the host reaches only the host; leaving the ``with`` block drains the node.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from engine import ctl, process
from engine.config import Config
from engine.exits import CONFIGURATION
from engine.supervisor import environment
from engine.supervisor.children import command, memfd
from ipc.errors import ConfigError, DragomanError

if TYPE_CHECKING:
    from engine.client import Client

KILL_WAIT_S = 5.0  # after SIGKILL


class Node:
    """A node of this program's own.

    config: path of a configuration file, a ``Config``, the same as a dict, or None (``./node.toml``, the user's file,
    else the embedded models). log_level: what the node's processes write to standard error, or to ``log_file``, at its
    end. publish: whether clients and ``stats`` on this machine find this node by themselves. news: called with a line
    about how far the start is, from a second on whenever that changes. modules: role -> module, for tests.

    One node can be started once. All methods may be called from any thread.
    """

    def __init__(
        self,
        config: str | Path | Config | Mapping[str, Any] | None = None,
        *,
        log_level: str = "warning",
        publish: bool = False,
        modules: Mapping[str, str] | None = None,
        log_file: str | Path | None = None,
        news: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._given = config
        self._log_level = log_level
        self._publish = publish
        self._modules = dict(modules or {})
        self._log_file = log_file
        self._news = news
        self._config = Config()
        self._process: subprocess.Popen[bytes] | None = None
        self._life_fd = -1
        self._ready: dict[str, Any] = {}

    # ------------------------------------------------------------ start

    def start(self) -> Node:
        """Start the node and wait until it is ready. Raises DragomanError with the line that says why it cannot."""
        process.require_linux()
        if self._process is not None:
            raise DragomanError("this node has been started before", "make a new Node")
        self._config = resolve(self._given)
        reading = self._spawn()
        try:
            with os.fdopen(reading, "rb") as pipe:
                self._ready = self._listen(pipe)
            self._check_ready()
        except BaseException:
            self.close(drain=False)
            raise
        return self

    def _spawn(self) -> int:
        """Start the supervisor; returns the descriptor its ready line will come from."""
        node = msgspec.structs.replace(self._config.node, log_level=self._log_level)
        config_fd = memfd("config", msgspec.msgpack.encode(msgspec.structs.replace(self._config, node=node)))
        host_fd, self._life_fd = os.pipe()
        reading, ready_fd = os.pipe()
        inherited = {"--config-fd": config_fd, "--host-fd": host_fd, "--ready-fd": ready_fd}
        arguments = [part for name, fd in inherited.items() for part in (name, str(fd))]
        arguments += ["--publish"] if self._publish else []
        arguments += ["--modules", json.dumps(self._modules)] if self._modules else []
        try:
            with nullcontext() if self._log_file is None else open(self._log_file, "ab") as log:
                self._process = subprocess.Popen(
                    command("engine.supervisor.main", *arguments),
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=tuple(inherited.values()),
                    process_group=0,
                )
        finally:
            for fd in inherited.values():
                os.close(fd)
        return reading

    def _listen(self, lines: Iterable[bytes]) -> dict[str, Any]:
        """What the supervisor says at last: ready, or why not; {} when it ended without a word."""
        for said in map(json.loads, lines):
            if "news" not in said:
                return dict(said)
            self._news(said["news"])
        return {}

    def _check_ready(self) -> None:
        if "error" in self._ready:
            if self._ready.get("code") == CONFIGURATION:
                raise named(ConfigError(self._ready["error"], self._ready.get("mend", "")), self._given)
            raise DragomanError(self._ready["error"], self._ready.get("mend", ""))
        if not self._ready:
            raise DragomanError("the node's supervisor ended before the node was ready", "see standard error for why")

    # ------------------------------------------------------------ while it runs

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return self._told("endpoints")[0]

    @property
    def ctl_endpoint(self) -> str:
        """The operators' socket."""
        return self._told("ctl")

    @property
    def name(self) -> str:
        """The node's id: 8 hex digits; all its processes carry it as DRAGOMAN_NODE in their environment."""
        return self._told("node")

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._running().pid

    def client(self, **options: Any) -> Client:
        """A client of this node (see ``engine.Client``). One client per thread."""
        from engine.client import Client

        return Client(self.endpoint, **options)

    def stats(self) -> dict[str, Any]:
        """The node's statistics, as ``run_node.py stats --json`` prints them."""
        return ctl.ask(self.ctl_endpoint, "stats")

    def drain(self) -> int:
        """Stop taking work, let what is in flight end, then end the node; returns how many were in flight."""
        return int(ctl.ask(self.ctl_endpoint, "drain")["in_flight"])

    def wait(self, timeout_s: float | None = None) -> int:
        """The supervisor's exit code. Raises TimeoutError if it still runs after ``timeout_s``."""
        try:
            return self._running().wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"the node still runs after {timeout_s} s") from error

    # ------------------------------------------------------------ the end

    def close(self, *, drain: bool = True) -> None:
        """End the node: in order, work in flight first; without ``drain`` at once. Nothing is left when it returns."""
        if self._process is None:
            return
        if drain and self._process.poll() is None:
            self._ask_to_drain()
            self._wait_or_kill(self._patience_s())
        self._cut()
        self._wait_or_kill(self._config.deadlines.stop_s + KILL_WAIT_S)

    def _ask_to_drain(self) -> None:
        """Asking twice does no harm, where a second signal would stop the node at once."""
        try:
            self.drain()
        except DragomanError:  # it does not answer: perhaps it is just ending
            self._running().send_signal(signal.SIGTERM)

    def _cut(self) -> None:
        """Close the pipe that ties the node to this program: the supervisor kills everything and leaves."""
        if self._life_fd >= 0:
            os.close(self._life_fd)
            self._life_fd = -1

    def _wait_or_kill(self, timeout_s: float) -> None:
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its children die with it
            self._process.wait(KILL_WAIT_S)

    def _patience_s(self) -> float:
        """The longest that an orderly stop takes by the configuration's own deadlines."""
        limits = self._config.deadlines
        return limits.drain_s + 2 * (limits.flush_s + limits.heartbeat_s) + 8 * limits.stop_s + KILL_WAIT_S

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise DragomanError("the node has not been started", "call start() or use it in a with statement")
        return self._process

    def _told(self, name: str) -> Any:
        self._running()
        return self._ready[name]

    def __enter__(self) -> Node:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)


def resolve(config: str | Path | Config | Mapping[str, Any] | None) -> Config:
    """A ``Config`` from whatever was given. Raises ConfigError."""
    if isinstance(config, Config):
        return config
    from engine import config_file, embedded

    if isinstance(config, Mapping):
        return config_file.from_dict(config)
    path = Path(config) if config is not None else config_file.find()
    return config_file.load(path) if path is not None else config_file.load(None, base=embedded.config())


def named(error: ConfigError, given: object) -> ConfigError:
    """The error with the file or variable it comes from, where a file was given or found."""
    if not isinstance(given, str | Path | None):
        return error
    from engine import config_file

    return config_file.with_origin(error, Path(given) if given is not None else config_file.find())


def _environment() -> dict[str, str]:
    """This program's environment, with our package first on the path."""
    paths = [environment.package_root(), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
