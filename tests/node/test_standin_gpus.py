"""Whole nodes on GPUs: the stand-in driver's, with simulated stages that take memory in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.standin_driver import GIB, Driver, Gpu
from engine import config_file, ctl
from engine.commands.choosing import as_toml
from engine.leasing import Lease
from engine.node import Node
from ipc.errors import DragomanError
from tests.node.rehearsal import Marks, assert_in_order, config, kill, process_of, wait_until

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

MIB = 2**20
ROOT = Path(__file__).resolve().parents[2]
CONTEXT = 300 * MIB
RUN = 100 * MIB
VRAM = {"asr": 3 * GIB, "repair": 2 * GIB, "nmt": GIB, "tts": GIB}
HOME = {"asr": "cuda:0", "repair": "cuda:1", "nmt": "cuda:1", "tts": "cuda:0"}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Driver]]:
    """``gpus(gpu, ...)`` -> the driver that nodes started from now on find."""
    with ExitStack() as ends:

        def make(*gpus: Gpu, **options: Any) -> Driver:
            driver = ends.enter_context(Driver(gpus, **options))
            for name, value in driver.environ(os.environ).items():
                monkeypatch.setenv(name, value)
            return driver

        yield make


def on_gpus(vram: dict[str, int] | None = None, **rest: Any) -> dict[str, Any]:
    """Four stages on two GPUs, with estimates that are right."""
    vram = VRAM | (vram or {})
    return config(
        options={name: {"vram_bytes": nbytes, "vram_run_bytes": RUN} for name, nbytes in vram.items()},
        stages={
            name: {"devices": [HOME[name]], "estimate_bytes": nbytes + RUN + CONTEXT} for name, nbytes in vram.items()
        },
        **rest,
    )


def translate(node: Node, count: int) -> list[Any]:
    marks = Marks()
    with node.client() as client, client.session(source="en", target="de", tag="a") as session:
        for index in range(count):
            session.submit(marks.make("a", index))
        outcomes = list(session.outcomes(timeout_s=30))
    for outcome in outcomes:
        marks.compare("a", outcome)
    assert not marks.mixed_up
    return outcomes


def two(**options: Any) -> tuple[Gpu, Gpu]:
    return Gpu(context_bytes=CONTEXT, **options), Gpu(context_bytes=CONTEXT, **options)


def test_a_node_on_two_gpus_translates_and_its_book_is_the_drivers(gpus: Callable[..., Driver]) -> None:
    driver = gpus(*two())
    with Node(on_gpus()) as node:
        outcomes = translate(node, 20)
        assert_in_order(outcomes)
        assert len(outcomes) == 20 and {o.outcome for o in outcomes} == {"ok"}
        assert [row["device"] for row in node.stats()["per_gpu"]] == ["cuda:0", "cuda:1", "cpu"]
        leases = wait_until(lambda: all_held(node))
        leased = {row["worker"].partition("@")[0]: row for row in leases}
        assert {name: row["device"] for name, row in leased.items()} == HOME
        for number in range(2):
            here = [name for name, home in HOME.items() if home == f"cuda:{number}"]
            assert driver.truth(number) == sum(taken(name) for name in here)
            pids = {process_of(node, f"{name}@cuda:{number}/0")["pid"]: taken(name) for name in here}
            assert driver.holders(number) == pids
            device = wait_until(lambda name=f"cuda:{number}": settled(node, name))
            assert device["held_bytes"] == driver.truth(number) and device["foreign_bytes"] == 0
            assert driver.get(number, "peak_bytes") == driver.truth(number) and driver.get(number, "out_of_memory") == 0
    assert driver.truth(0) == driver.truth(1) == 0


def taken(stage: str) -> int:
    """What a stage that has run takes: its weights, its workspace, and its process's context."""
    return VRAM[stage] + RUN + CONTEXT


def all_held(node: Node) -> list[dict[str, Any]]:
    """The leases, once the arbiter has reported all of them as held."""
    leases = node.stats()["leases"]
    return leases if [row["state"] for row in leases] == ["held"] * len(HOME) else []


def settled(node: Node, device: str) -> dict[str, Any] | None:
    """The arbiter's row of a device, once its reading shows what the stages have taken."""
    row = node.stats()["arbiter"]["devices"][device]
    held = sum(taken(name) for name, home in HOME.items() if home == device)
    return row if row["held_bytes"] == held else None


def test_a_killed_workers_memory_comes_back_and_the_next_takes_it(gpus: Callable[..., Driver]) -> None:
    driver = gpus(*two(), lag_s=0.3)
    with Node(on_gpus()) as node:
        translate(node, 1)
        before = driver.truth(0)
        dead = process_of(node, "asr@cuda:0/0")["pid"]
        kill(dead)
        outcomes = translate(node, 5)
        assert {o.outcome for o in outcomes} == {"ok"}
        assert dead not in driver.holders(0)
        wait_until(lambda: driver.truth(0) == before)
        assert driver.get(0, "out_of_memory") == 0


def test_a_stage_waits_for_memory_and_is_refused_with_what_it_needs_and_what_there_is(
    gpus: Callable[..., Driver], tmp_path: Path
) -> None:
    driver = gpus(*two())
    driver.set_foreign(1, 5 * GIB)
    log = tmp_path / "log"
    node = Node(
        on_gpus({"repair": GIB, "nmt": 4 * GIB}, deadlines={"lease_wait_s": 1.0}), log_level="info", log_file=log
    )
    with pytest.raises(DragomanError) as refused, node:
        pass
    assert "nmt@cuda:1/0 needs 4.4 GiB on cuda:1" in str(refused.value) and "can be granted" in str(refused.value)
    assert "nmt@cuda:1/0 waits for memory" in log.read_text()
    assert driver.get(1, "out_of_memory") == 0  # it was never tried
    wait_until(lambda: driver.truth(0) == driver.truth(1) == 0)


def test_a_stage_that_waits_starts_when_another_program_lets_go(gpus: Callable[..., Driver], tmp_path: Path) -> None:
    driver = gpus(*two())
    driver.set_foreign(1, 7 * GIB)
    log = tmp_path / "log"
    node = Node(on_gpus(), log_level="info", log_file=log)
    starting = threading.Thread(target=node.start)
    starting.start()
    try:
        wait_until(lambda: log.exists() and "waits for memory" in log.read_text())
        driver.set_foreign(1, 0)
        starting.join(20)
        assert not starting.is_alive() and {o.outcome for o in translate(node, 3)} == {"ok"}
    finally:
        node.close()


def test_a_run_that_finds_too_little_is_out_of_memory_and_the_worker_lives(gpus: Callable[..., Driver]) -> None:
    """Its workspace is not in its estimate, and another program has taken the rest."""
    driver = gpus(*two())
    with Node(on_gpus(deadlines={"oom_hold_s": 0.1})) as node:
        driver.set_foreign(1, 8 * GIB - driver.truth(1) - RUN // 2)
        pid = process_of(node, "nmt@cuda:1/0")["pid"]
        with node.client() as client, client.session(source="en", target="de", tag="a") as session:
            session.submit(Marks().make("a", 0))
            wait_until(lambda: node.stats()["oom_errors"] > 0)
            driver.set_foreign(1, 0)
            outcome = next(iter(session.outcomes(timeout_s=30)))
        assert outcome.outcome == "ok" and process_of(node, "nmt@cuda:1/0")["pid"] == pid
        assert driver.get(1, "out_of_memory") > 0


def test_a_node_runs_on_an_instance_of_a_divided_gpu(gpus: Callable[..., Driver]) -> None:
    driver = gpus(Gpu(context_bytes=CONTEXT), Gpu(2 * 8 * GIB, context_bytes=CONTEXT, instances=(8 * GIB, 8 * GIB)))
    _, whole, used, other = driver.uuids
    with Node(on_gpus(devices={"use": ["cuda:0", used]})) as node:
        assert {o.outcome for o in translate(node, 3)} == {"ok"}
        here = sum(taken(name) for name, home in HOME.items() if home == "cuda:1")
        wait_until(lambda: driver.truth(used) == here)
        assert driver.truth(whole) == driver.truth(used) and driver.truth(other) == 0


def test_a_gpu_that_is_lost_keeps_nothing_from_the_others(gpus: Callable[..., Driver]) -> None:
    driver = gpus(*two())
    with Node(on_gpus()) as node:
        driver.lose(1)
        dead = process_of(node, "asr@cuda:0/0")
        kill(dead["pid"])
        wait_until(lambda: process_of(node, "asr@cuda:0/0")["incarnation"] > dead["incarnation"])
        wait_until(lambda: process_of(node, "asr@cuda:0/0")["phase"] == "loaded")


def test_a_gpu_that_is_lost_before_the_start_is_left_out(gpus: Callable[..., Driver]) -> None:
    driver = gpus(*two())
    driver.lose(1)
    with Node(config(stages={name: {"devices": ["auto"]} for name in HOME})) as node:
        assert [row["device"] for row in node.stats()["per_gpu"]] == ["cuda:0", "cpu"]
        assert {o.outcome for o in translate(node, 2)} == {"ok"}


def device_row(node: Node, held: int, foreign: int) -> dict[str, Any] | None:
    """The arbiter's row of cuda:0, once it shows these bytes."""
    row: dict[str, Any] = node.stats()["arbiter"]["devices"]["cuda:0"]
    return row if (row["held_bytes"], row["foreign_bytes"]) == (held, foreign) else None


@pytest.mark.parametrize(("figures", "mistaken_for_ours"), [("shown", 0), ("empty", RUN)])
def test_what_another_program_takes_beside_a_lease_that_may_grow_is_its_own_where_the_driver_lists_processes(
    gpus: Callable[..., Driver], figures: str, mistaken_for_ours: int
) -> None:
    driver = gpus(*two())
    driver.set_process_figures(0, figures)
    with Node(on_gpus()) as node:  # loaded, and the workspace of its first run not taken yet
        loaded = driver.truth(0)
        assert wait_until(lambda: device_row(node, loaded, 0))["promised_bytes"] == 2 * RUN
        driver.set_foreign(0, RUN)
        assert wait_until(lambda: device_row(node, loaded + mistaken_for_ours, RUN - mistaken_for_ours))


CHILD = """
import ctypes, sys
library = ctypes.CDLL("libnvidia-ml.so.1")
library.standin_allocate.restype = ctypes.c_int64
library.standin_allocate.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
print(library.standin_allocate(b"0", 2**30) > 0, flush=True)
sys.stdin.read()
"""


def test_what_a_program_under_a_lease_starts_uses_its_lease(gpus: Callable[..., Driver]) -> None:
    driver = gpus(*two())
    with Node(on_gpus()) as node:
        before = driver.truth(0)
        command = [
            sys.executable, "run_node.py", "lease", "--connect", node.ctl_endpoint, "--gib", "2", "--device", "cuda:0",
            "--", "sh", "-c", f"{sys.executable} -c '{CHILD}'; true",
        ]  # fmt: skip
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None and program.stdout.readline() == "True\n"
            assert program.pid not in driver.holders(0), "its child has the memory"
            assert wait_until(lambda: device_row(node, before + GIB + CONTEXT, 0))
            program.communicate("")
        wait_until(lambda: device_row(node, before, 0))


def test_leases_that_name_no_gpu_share_them_out_and_get_none_that_is_drained_or_lost(
    gpus: Callable[..., Driver],
) -> None:
    driver = gpus(*two(), *two(total_bytes=24 * GIB))
    with Node(config()) as node, ExitStack() as ends:

        def leased(gib: int, device: str = "") -> str:
            lease = Lease(gib * GIB, device, wait_s=0.0, ctl_endpoint=node.ctl_endpoint)
            return ends.enter_context(lease).device

        ctl.ask(node.ctl_endpoint, "drain", target="cuda:2")
        driver.lose(3)
        wait_until(lambda: node.stats()["arbiter"]["devices"]["cuda:3"]["quarantined"])
        assert {leased(5), leased(5)} == {"cuda:0", "cuda:1"}, "the second knows of the first"
        with pytest.raises(DragomanError, match=r"needs 5\.0 GiB on cuda:"):
            leased(5)
        with pytest.raises(DragomanError, match="cuda:2 is drained by an operator"):
            leased(5, "cuda:2")
        for name in ("cuda:0", "cuda:1"):
            ctl.ask(node.ctl_endpoint, "drain", target=name)
        with pytest.raises(DragomanError, match=r"cuda:[012] is drained by an operator.*ctl resume cuda:"):
            leased(1)
        for number in range(3):
            driver.lose(number)
        wait_until(lambda: all(row["quarantined"] for name, row in devices(node).items() if name != "cpu"))
        with pytest.raises(DragomanError, match="no device is left to lease: cuda:0 is lost, cuda:1 is lost"):
            leased(1)


def devices(node: Node) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = node.stats()["arbiter"].get("devices", {})
    return found


def test_a_program_that_waits_gets_no_gpu_that_was_drained_since_whoever_dies_meanwhile_until_it_is_used_again(
    gpus: Callable[..., Driver],
) -> None:
    driver = gpus(*two())
    driver.set_foreign(0, 7 * GIB)
    driver.set_foreign(1, 7 * GIB)
    with Node(config()) as node, ExitStack() as ends:

        def lease(*arguments: str) -> subprocess.Popen[str]:
            command = [sys.executable, "run_node.py", "lease", "--connect", node.ctl_endpoint, "--gib", "4", *arguments]
            command += ["--", sys.executable, "-c", HOLD]
            return ends.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )

        def waiting() -> dict[str, str]:
            """Device -> kind of what its request waits for."""
            rows = node.stats()["arbiter"].get("waiting", [])
            return {row["device"]: row["kind"] for row in rows}

        def explained() -> str:
            command = [sys.executable, "run_node.py", "explain", "--connect", node.ctl_endpoint]
            return subprocess.run(command, capture_output=True, text=True).stdout

        wait_until(lambda: all(row["foreign_bytes"] for name, row in devices(node).items() if name != "cpu"))
        named, unnamed = lease("--device", "cuda:1"), lease()
        wait_until(lambda: node.stats()["arbiter"]["waiting_total"] == 2)
        ctl.ask(node.ctl_endpoint, "drain", target="cuda:1")
        wait_until(lambda: waiting() == {"cuda:0": "room", "cuda:1": "drained"})
        driver.set_foreign(1, 0)
        for role in ("arbiter", "scheduler"):
            before = process_of(node, role)["incarnation"]
            kill(process_of(node, role)["pid"])
            wait_until(lambda role=role, before=before: process_of(node, role)["incarnation"] > before)
            wait_until(lambda: waiting() == {"cuda:0": "room", "cuda:1": "drained"} and devices(node))
            wait_until(lambda: devices(node)["cuda:1"]["foreign_bytes"] == 0)
        assert devices(node)["cuda:1"]["drained"] and devices(node)["cuda:1"]["grantable_bytes"] == 0
        assert "because: cuda:1 is drained by an operator" in explained()
        driver.set_foreign(0, 0)
        assert unnamed.stdout is not None and unnamed.stdout.readline() == f"{driver.uuids[0]}\n"
        ctl.ask(node.ctl_endpoint, "resume", target="cuda:1")
        assert named.stdout is not None and named.stdout.readline() == f"{driver.uuids[1]}\n"
        wait_until(lambda: not devices(node)["cuda:1"]["drained"])
        _, said = named.communicate("")
        assert "waiting: cuda:1 is drained by an operator" in said
        unnamed.communicate("")


HOLD = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"


def test_a_lease_is_asked_for_while_the_arbiter_comes_back(gpus: Callable[..., Driver]) -> None:
    gpus(*two())
    with Node(config()) as node:
        kill(process_of(node, "arbiter")["pid"])
        wait_until(lambda: not node.stats()["arbiter"])
        with Lease(GIB, ctl_endpoint=node.ctl_endpoint) as lease:
            assert lease.device in ("cuda:0", "cuda:1") and lease.uuid.startswith("GPU-")


def test_the_doctor_beside_a_running_node_counts_its_memory_as_free(
    gpus: Callable[..., Driver], tmp_path: Path
) -> None:
    gpus(*two(total_bytes=6 * GIB))
    file = tmp_path / "node.toml"
    file.write_text(as_toml(config_file.from_dict(on_gpus())))

    def doctor(endpoint: str) -> dict[str, Any]:
        command = [sys.executable, "run_node.py", "doctor", "--json", "--config", str(file), "--connect", endpoint]
        said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False).stdout
        return {one["topic"]: one for one in json.loads(said)["findings"]}

    with Node(on_gpus()) as node:
        translate(node, 2)
        wait_until(lambda: sum(one["held_bytes"] > GIB for one in node.stats()["leases"]) == len(VRAM))
        beside, unseen = doctor(node.ctl_endpoint), doctor(f"ipc://{tmp_path / 'nobody'}")
    assert beside["placement"]["text"].startswith("all resident; cuda:0: asr")
    assert "as if node" in beside["plan"]["text"] and beside["cuda:0"]["state"] == "ok"
    assert unseen["placement"]["text"].startswith("by turns")
    assert "it is in use by node" in unseen["claim cuda:0"]["text"] and unseen["claim cuda:0"]["state"] == "note"
