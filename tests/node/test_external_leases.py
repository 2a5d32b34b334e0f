"""Programs outside the node take leases of its arbiter: told why they wait, asked to leave, ended with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine import ctl
from engine.leasing import Lease
from engine.node import Node
from ipc.errors import DragomanError
from tests.node.rehearsal import config, kill, process_of, wait_until

ROOT = Path(__file__).parents[2]
MIB = 2**20
HOLD = "import os, time; print(os.getpid(), os.environ['DRAGOMAN_LEASE_BYTES'], flush=True); time.sleep(60)"
TAKE = "taken = bytearray(b'x') * (512 << 20); import sys; print(len(taken), flush=True); sys.stdin.read()"


def command(node: Node, *arguments: str, gib: str = "0.25") -> list[str]:
    return [
        sys.executable, str(ROOT / "run_node.py"), "lease", "--connect", node.ctl_endpoint, "--gib", gib, *arguments,
    ]  # fmt: skip


def external(node: Node) -> list[dict]:
    return [row for row in node.stats()["leases"] if row["worker"].startswith("lease@")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_runs_under_a_lease_that_ends_with_it(number: int) -> None:
    with Node(config()) as node:
        with subprocess.Popen(
            command(node, "--", sys.executable, "-c", HOLD), stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            pid, nbytes = child.stdout.readline().split()
            assert int(pid) == child.pid, "it has taken the command's place"
            assert int(nbytes) == 256 * MIB
            (row,) = wait_until(lambda: external(node))
            assert row["nbytes"] == 256 * MIB and row["state"] == "held" and row["model"] == sys.executable
            child.send_signal(number)
            wait_until(lambda: not external(node))


def test_what_another_program_takes_of_the_machine_s_memory_is_not_put_down_to_a_lease() -> None:
    ages = set()

    def reports(node: Node) -> int:
        ages.add(node.stats()["arbiter"]["devices"]["cpu"]["snapshot_age_ms"])
        return len(ages)

    with Node(config()) as node, subprocess.Popen(
        command(node, "--", sys.executable, "-c", HOLD, gib="1"), stdout=subprocess.PIPE
    ) as holder:  # fmt: skip
        wait_until(lambda: external(node) and external(node)[0]["held_bytes"])
        with subprocess.Popen([sys.executable, "-c", TAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdout.readline()
            ages.clear()
            wait_until(lambda: reports(node) > 3)
            assert external(node)[0]["held_bytes"] < 64 * MIB
            other.kill()
        holder.kill()


def test_the_log_tells_of_a_program_s_lease_from_the_grant_to_the_end() -> None:
    with Node(config(), log_level="info") as node:
        assert subprocess.run(command(node, "--", "true")).returncode == 0
        with Lease(MIB, ctl_endpoint=node.ctl_endpoint):
            pass

        def told() -> list[str]:
            lines = ctl.ask(node.ctl_endpoint, "log")["lines"]
            return [line.partition(" lease@")[2].partition(" ")[2] for line in lines if "arbiter: lease@" in line]

        wait_until(lambda: len(told()) >= 4)
        assert told() == [
            "is granted 256 MiB", "has ended, and its lease with it", "is granted 1 MiB", "has given its lease back",
        ]  # fmt: skip


def test_the_program_s_exit_code_is_the_command_s() -> None:
    with Node(config()) as node:
        assert subprocess.run(command(node, "--", "sh", "-c", "exit 7")).returncode == 7


def test_no_room_is_said_with_the_figures() -> None:
    with Node(config()) as node:
        done = subprocess.run(command(node, "--wait", "0", "--", "true", gib="90000"), capture_output=True, text=True)
        assert done.returncode == 1
        assert "needs 90000.0 GiB on cpu" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--", "no-such-program"], 1, "there is no program 'no-such-program'"),
        ([], 2, "lease needs a program to run"),
        (["--device", "cuda:9", "--", "true"], 1, "the node has no device 'cuda:9'; it has cpu"),
        (["--wait", "-1", "--", "true"], 2, "--wait is -1"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], code: int, words: str) -> None:
    with Node(config()) as node:
        done = subprocess.run(command(node, *arguments), capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1) and words in done.stderr


def test_without_a_node_there_is_no_lease() -> None:
    lost = ["lease", "--connect", "ipc:///nowhere/ctl", "--gib", "1", "--", "true"]
    done = subprocess.run([sys.executable, str(ROOT / "run_node.py"), *lost], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_a_lease_outlives_the_arbiter_and_ends_with_its_holder_all_the_same() -> None:
    with Node(config()) as node:
        with subprocess.Popen(
            command(node, "--", sys.executable, "-c", HOLD), stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            kill(process_of(node, "arbiter")["pid"])
            wait_until(lambda: external(node))
            kill(process_of(node, "arbiter")["pid"])
            child.kill()
        wait_until(lambda: node.stats()["arbiter"].get("devices") and not external(node))


def test_a_python_program_takes_one_and_gives_it_back() -> None:
    with Node(config()) as node:
        for _ in range(3):
            with Lease(64 * MIB, ctl_endpoint=node.ctl_endpoint) as lease:
                assert lease.device == "cpu" and lease.number
                wait_until(lambda: len(external(node)) == 1)
            wait_until(lambda: not external(node))


def test_it_can_be_given_back_to_another_arbiter() -> None:
    with Node(config()) as node, Lease(64 * MIB, ctl_endpoint=node.ctl_endpoint) as lease:
        kill(process_of(node, "arbiter")["pid"])
        wait_until(lambda: external(node))
        lease.release()
        wait_until(lambda: not external(node))


def test_a_preemptible_one_is_asked_to_leave_when_another_needs_its_memory() -> None:
    """Asked on its connection where it has one, by SIGTERM where it has become another program."""
    with Node(config(deadlines={"grace_s": 0.5})) as node:
        free = wait_until(lambda: node.stats()["arbiter"].get("devices", {}).get("cpu", {}).get("grantable_bytes"))
        most = int(0.6 * free)
        with Lease(most, ctl_endpoint=node.ctl_endpoint, preemptible=True) as polite:
            assert not polite.asked_to_leave
            begging = subprocess.Popen(
                command(node, "--preemptible", "--", sys.executable, "-c", HOLD, gib=str(most / 2**30)),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            wait_until(lambda: polite.asked_to_leave)
            wait_until(lambda: [row for row in external(node) if row["overdue"]])
            polite.release()
            assert begging.stdout is not None and begging.stderr is not None
            assert begging.stdout.readline(), "it runs now"
        with Lease(most, ctl_endpoint=node.ctl_endpoint, wait_s=10.0):
            assert begging.wait(10.0) == -signal.SIGTERM
        told = begging.stderr.read()
        assert "waiting: " in told and "for 60 s at most" in told and "run_node.py explain --connect" in told


def test_one_that_looks_at_its_connection_is_asked_there_by_another_arbiter_too() -> None:
    """A signal would end this very process."""
    with Node(config(deadlines={"grace_s": 0.5})) as node:
        free = wait_until(lambda: node.stats()["arbiter"].get("devices", {}).get("cpu", {}).get("grantable_bytes"))
        most = int(0.6 * free)
        with Lease(most, ctl_endpoint=node.ctl_endpoint, preemptible=True) as polite:
            kill(process_of(node, "arbiter")["pid"])
            wait_until(lambda: not polite.asked_to_leave and external(node))
            with subprocess.Popen(
                command(node, "--", sys.executable, "-c", HOLD, gib=str(most / 2**30)), stdout=subprocess.PIPE
            ) as begging:
                wait_until(lambda: polite.asked_to_leave)
                polite.release()
                assert begging.stdout is not None and begging.stdout.readline(), "it runs now"
                begging.kill()


def test_it_is_given_back_to_an_arbiter_that_is_still_away() -> None:
    with Node(config()) as node:
        lease = Lease(64 * MIB, ctl_endpoint=node.ctl_endpoint).acquire()
        kill(process_of(node, "arbiter")["pid"])
        lease.release()
        assert not lease.number
        wait_until(lambda: node.stats()["arbiter"].get("devices") and not external(node))


def test_of_two_leases_of_one_name_the_second_ends_with_its_holder() -> None:
    """Giving one back does not make the node forget whose the other is."""
    two = (
        "import os, time\n"
        "from engine.leasing import Lease\n"
        "from ipc.messages import LeaseRequest, Release\n"
        f"lease = Lease({64 * MIB}, ctl_endpoint=os.environ['CTL']).acquire()\n"
        f"lease._link.send([LeaseRequest(7, lease._role, 'cpu', {MIB}, pid=os.getpid())])\n"
        "time.sleep(0.5)\n"
        "lease._link.send([Release(lease.number)])\n"
        "print('one', flush=True)\n"
        "time.sleep(60)\n"
    )
    with Node(config()) as node:
        child = subprocess.Popen(
            [sys.executable, "-c", two], stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "CTL": node.ctl_endpoint}
        )
        assert child.stdout is not None and child.stdout.readline()
        wait_until(lambda: [row["nbytes"] for row in external(node)] == [MIB])
        child.kill()
        child.wait()
        wait_until(lambda: not external(node))


def test_who_waits_is_explained_with_the_numbers_and_who_is_before_it() -> None:
    with Node(config()) as node:
        free = wait_until(lambda: node.stats()["arbiter"].get("devices", {}).get("cpu", {}).get("grantable_bytes"))
        gib = str(0.6 * free / 2**30)
        ask = [sys.executable, str(ROOT / "run_node.py"), "explain", "--connect", node.ctl_endpoint]
        assert subprocess.run(ask, capture_output=True, text=True).stdout == "nothing waits for memory\n"
        for name in ("asr", "asr@cpu/0"):
            text = subprocess.run([*ask, name], capture_output=True, text=True).stdout
            assert text == "nothing of that name waits for memory\n"
        done = subprocess.run([*ask, "nope"], capture_output=True, text=True)
        assert done.returncode == 1 and "no worker and no program here is called 'nope'" in done.stderr
        with Lease(int(0.6 * free), ctl_endpoint=node.ctl_endpoint):
            waiting = [
                subprocess.Popen(
                    command(node, "--priority", priority, "--", "true", gib=gib), stderr=subprocess.DEVNULL
                )
                for priority in ("low", "high")
            ]
            wait_until(lambda: node.stats()["arbiter"]["waiting_total"] == 2)
            rows = json.loads(subprocess.run([*ask, "--json"], capture_output=True, text=True).stdout)
            assert [(row["priority"], row["ahead"], row["kind"]) for row in rows] == [
                ("high", 0, "room"),
                ("low", 1, "room"),
            ]
            assert all(row["room_bytes"] < row["needs_bytes"] for row in rows)
            text = subprocess.run([*ask, f"lease@{waiting[0].pid}"], capture_output=True, text=True).stdout
            assert "(true) has waited" in text and "low priority, 1 before it" in text and "can be granted" in text
        assert [child.wait(20.0) for child in waiting] == [0, 0], "both run when it is given back"


def test_a_name_that_is_not_its_own_holds_nothing() -> None:
    """Somebody who says that he is a process that is not there is not heard."""
    with Node(config()) as node:
        liar = Lease(MIB, ctl_endpoint=node.ctl_endpoint, wait_s=0.0)
        liar._life += 1
        with pytest.raises(DragomanError, match="is not there"):
            liar.acquire()
        assert not external(node)


def test_who_gives_up_waiting_has_leased_nothing_and_hears_why() -> None:
    """While a model loads nobody's patience counts, so it is not denied before that; then it is granted to nobody."""
    slow = {name: {"load_ms": 3000.0} for name in ("asr",)}
    with Node(config(options=slow)) as node:
        wait_until(lambda: process_of(node, "asr@cpu/0")["phase"] == "loaded")
        kill(process_of(node, "asr@cpu/0")["pid"])
        wait_until(lambda: process_of(node, "asr@cpu/0")["phase"] == "loading")
        reasons: list[str] = []

        def interrupt(reason: str) -> None:
            reasons.append(reason)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Lease(256 * MIB, wait_s=60.0, ctl_endpoint=node.ctl_endpoint, on_wait=interrupt).acquire()
        assert "load" in reasons[0]
        wait_until(lambda: process_of(node, "asr@cpu/0")["phase"] == "loaded")
        assert not external(node)
        with Lease(256 * MIB, wait_s=0.1, ctl_endpoint=node.ctl_endpoint) as lease:
            assert [row["lease"] for row in wait_until(lambda: external(node))] == [lease.number]


def test_a_load_of_others_is_waited_out_and_does_not_count() -> None:
    with Node(config(options={"asr": {"load_ms": 8000.0}})) as node:
        kill(process_of(node, "asr@cpu/0")["pid"])
        wait_until(lambda: process_of(node, "asr@cpu/0")["phase"] == "loading")
        with Lease(256 * MIB, wait_s=1.0, ctl_endpoint=node.ctl_endpoint) as lease:
            assert lease.number


@pytest.mark.parametrize("wait_s", [float("nan"), float("inf"), -1.0])
def test_a_wait_that_is_no_time_is_refused(wait_s: float) -> None:
    with pytest.raises(ValueError, match="give seconds from 0"):
        Lease(MIB, wait_s=wait_s)


def test_a_program_that_cannot_be_run_is_one_line_and_leaves_no_lease(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("no first line\n")
    script.chmod(0o755)
    with Node(config()) as node:
        done = subprocess.run(command(node, "--", str(script)), capture_output=True, text=True)
        assert done.returncode == 1 and "cannot be run: Exec format error" in done.stderr
        assert done.stderr.count("\n") == 1
        wait_until(lambda: not external(node))
        done = subprocess.run(command(node, "--", "true", gib="1e-10"), capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
