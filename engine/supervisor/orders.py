"""What operators have ordered, and of that what still holds. Pure.

The supervisor keeps it, since operators speak to it and the node does not outlive it; the scheduler, which carries it
out, and the arbiter, which lets nobody onto a drained device, are told all of it whenever it changes, and each new one
is born with it. An order is therefore a *level* and
never an event that somebody might miss: a device is drained or not, a knob has a value, lives of a worker up to a
number are to leave (an errand, which ends when the next life follows, or has its model).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine.boot import WorkerPlan
from engine.supervisor.roster import LIVING, Record, Roster, State
from ipc.errors import DragomanError
from ipc.messages import Errand
from ipc.messages import Orders as Standing

VERBS = ("restart", "drain", "resume", "load", "unload", "pin", "unpin", "set")
HAVING = ("waiting", "loading", "loaded")  # phases of a worker that has its model, or will have it


class Orders:
    """See the module's docstring.

    Each verb changes what holds and returns what an operator is told; DragomanError when there is nothing to change.
    """

    def __init__(self, workers: Iterable[WorkerPlan], pinned: Mapping[str, bool], devices: Iterable[str]) -> None:
        self._workers = {worker.role: worker for worker in workers}
        self._devices = tuple(devices)
        self._pinned = dict(pinned)  # stage -> as configured
        self.drained: set[str] = set()
        self.errands: dict[str, Errand] = {}
        self.knobs: dict[str, bool | int | float] = {}

    def standing(self) -> Standing:
        """All of it, for the scheduler; the arbiter goes by what is drained."""
        return Standing(tuple(sorted(self.drained)), tuple(self.errands.values()), dict(self.knobs))

    def obey(self, verb: str, target: str, roster: Roster, value: Any = None, usual: Any = None) -> list[str]:
        """Carry out a verb; returns the workers it is about."""
        match verb:
            case "restart":
                return self.restart(target, roster)
            case "unload":
                return self.unload(target, roster)
            case "load":
                return self.load(target, roster)
            case "drain":
                return self.drain(target)
            case "resume":
                return self.resume(target)
            case "pin" | "unpin":
                return self.pin(target, verb == "pin")
            case "set":
                self._turn(target, value, usual)
                return []
        raise DragomanError(f"there is no order {verb!r}; there are {', '.join(VERBS)}")

    # ------------------------------------------------------------ the verbs

    def restart(self, target: str, roster: Roster) -> list[str]:
        """Workers (one role, or all of a stage) whose life is to end after its batches, and another to follow."""
        roles = [target] if target in self._workers else self._of_stage(target, "worker or stage")
        if going := [role for role in roles if role in self.errands and self.errands[role].back]:
            raise DragomanError(f"{going[0]} is being restarted already", "run_node.py stats shows how far it is")
        for role in roles:
            if roster[role].state is not State.SPENT:
                self.errands[role] = Errand(role, roster[role].incarnation, True)
        return roles

    def unload(self, stage: str, roster: Roster) -> list[str]:
        """Workers of a stage that give their memory back now, and load again when the stage has work."""
        roles = [role for role in self._of_stage(stage) if roster[role].state in LIVING]
        roles = [role for role in roles if role not in self.errands and _has_model(roster[role])]
        if not roles:
            raise DragomanError(f"no worker of stage {stage} has a model, or it is on its way out already")
        for role in roles:
            self.errands[role] = Errand(role, roster[role].incarnation, False)
        return roles

    def load(self, stage: str, roster: Roster) -> list[str]:
        """Workers of a stage that are to have their model, in use or not; whatever was to be unloaded is so no more.

        Extra ones come and go with the work, and who is on standby loads where no other may.
        """
        all_ = self._of_stage(stage)
        roles = [role for role in all_ if self._workers[role].device not in self.drained]
        if not roles:
            device = self._workers[all_[0]].device
            raise DragomanError(f"{device} is drained", f"run_node.py ctl resume {device}")
        regular = [role for role in roles if not self._workers[role].extra and roster[role].state is not State.SPENT]
        if not regular:
            raise DragomanError(f"stage {stage} has no worker left", f"run_node.py ctl restart {stage}")
        for role in roles:
            if role in self.errands and not self.errands[role].back:
                del self.errands[role]
        return [role for role in regular if not self._workers[role].standby] or regular[:1]

    def drain(self, device: str) -> list[str]:
        """Workers of a device where nothing new begins."""
        self._known(device)
        if device in self.drained:
            raise DragomanError(f"{device} is drained already", f"run_node.py ctl resume {device} undoes it")
        self.drained.add(device)
        return self._on(device)

    def resume(self, device: str) -> list[str]:
        """Workers of a device that is used again."""
        self._known(device)
        if device not in self.drained:
            raise DragomanError(f"{device} is not drained")
        self.drained.remove(device)
        return self._on(device)

    def pin(self, stage: str, pinned: bool) -> list[str]:
        """Workers of a stage whose model may, or may not, leave for another; extra ones always may."""
        roles = [role for role in self._of_stage(stage) if not self._workers[role].extra]
        knob = f"stages.{stage}.pinned"
        if self.knobs.get(knob, self._pinned.get(stage, False)) == pinned:
            raise DragomanError(f"stage {stage} is pinned already" if pinned else f"stage {stage} is not pinned")
        self._turn(knob, pinned, self._pinned.get(stage, False))
        return roles

    def _turn(self, knob: str, value: bool | int | float, usual: bool | int | float) -> None:
        """Give a knob a value. ``usual``: the one it has without operators."""
        if value == usual:
            self.knobs.pop(knob, None)
        else:
            self.knobs[knob] = value

    # ------------------------------------------------------------ what becomes of errands

    def heard(self, record: Record) -> bool:
        """A worker has said how far it is. Returns whether an errand has ended with that."""
        errand = self.errands.get(record.role)
        if errand is None or record.incarnation <= errand.incarnation:
            return False
        if errand.back or record.phase.startswith(("loading", "loaded")):
            del self.errands[record.role]
            return True
        return False

    def forget(self, role: str) -> None:
        """No other life of this worker will follow."""
        self.errands.pop(role, None)

    def pending(self, roster: Roster) -> list[str]:
        """Workers that have not yet done what they were ordered to, for who waits for that."""
        waited = {r for r, one in self.errands.items() if one.back or roster[r].incarnation <= one.incarnation}
        for role, worker in self._workers.items():
            if worker.device in self.drained and roster[role].state in LIVING and _has_model(roster[role]):
                waited.add(role)
        return sorted(waited)

    def snapshot(self, roster: Roster) -> dict[str, Any]:
        """For ``stats``."""
        unloaded = [role for role, one in self.errands.items() if not one.back]
        restarting = [role for role, one in self.errands.items() if one.back]
        return {
            "drained": sorted(self.drained),
            "knobs": dict(self.knobs),
            "unloaded": sorted(unloaded),
            "restarting": sorted(restarting),
            "pending": self.pending(roster),
        }

    def check(self) -> None:
        """Invariants."""
        assert self.drained <= set(self._devices)
        assert self.errands.keys() <= self._workers.keys()

    # ------------------------------------------------------------ names

    def _of_stage(self, stage: str, what: str = "stage") -> list[str]:
        roles = [role for role, worker in self._workers.items() if worker.stage == stage]
        if not roles:
            known = list(dict.fromkeys(worker.stage for worker in self._workers.values()))
            known += list(self._workers) if what != "stage" else []
            raise DragomanError(f"there is no {what} {stage!r} with a process; there are {', '.join(known) or 'none'}")
        return roles

    def _known(self, device: str) -> None:
        if device not in self._devices:
            raise DragomanError(f"this node has no device {device!r}; it has {', '.join(self._devices)}")

    def _on(self, device: str) -> list[str]:
        return [role for role, worker in self._workers.items() if worker.device == device]


def _has_model(record: Record) -> bool:
    return record.phase.startswith(HAVING)
