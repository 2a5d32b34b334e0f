"""A GPU that is lost or cannot be read, and a holder of its memory that nobody can end: said, counted, and no matter to
the rest."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.standin_driver import GIB, Driver
from engine.leasing import Lease
from engine.node import Node
from ipc.errors import DragomanError
from tests.node.living import is_alive
from tests.node.rehearsal import Marks, config, kill, process_of, wait_until
from tests.node.test_standin_gpus import HOME, VRAM, all_held, gpus, on_gpus, taken, translate, two  # noqa: F401
from tests.node.unkillable import stuck_in_its_exit

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

ROOT = Path(__file__).parents[2]
Gpus = Callable[..., Driver]
EAGER = {"silent_s": 0.5, "stuck_s": 1.0, "abort_s": 0.1, "settle_s": 1.0}


def roles(node: Node) -> set[str]:
    return {row["role"] for row in node.stats()["processes"]}


def health(node: Node) -> dict[str, Any]:
    return node.stats()["health"]


def device(node: Node, name: str) -> dict[str, Any]:
    return node.stats()["arbiter"].get("devices", {}).get(name, {})


def command(node: Node, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "run_node.py"), verb, *arguments, "--connect", node.ctl_endpoint]
    return subprocess.run(words, capture_output=True, text=True)


def loaded(node: Node, role: str) -> dict[str, Any]:
    """The row of a worker that has loaded its model, and of whom the scheduler knows that; it is waited for.

    To the scheduler one that loads may be silent for as long as that may take.
    """

    def row() -> dict[str, Any] | None:
        stats = node.stats()
        known = stats["scheduler"].get("workers", {}).get(role, {})
        life = known.get("incarnation") if known.get("state") == "loaded" else None
        rows = (one for one in stats["processes"] if one["role"] == role and one["phase"] == "loaded")
        return next((one for one in rows if one["incarnation"] == life), None)

    return wait_until(row)


def both(**rest: Any) -> dict[str, Any]:
    """asr and nmt on each GPU, the others on the first."""
    one = {name: {"devices": ["cuda:0"]} for name in HOME}
    return config(stages=one | {name: {"devices": ["cuda:0", "cuda:1"]} for name in ("asr", "nmt")}, **rest)


def lose(driver: Driver, how: str) -> str:
    """Lose the second GPU; the reason that is told."""
    if how == "lost":
        driver.lose(1)
        return "cuda:1 is quarantined: GPU is lost"
    driver.set(1, ecc_uncorrected=5)
    return "cuda:1 is quarantined: 2 uncorrectable ECC errors in its memory"


@pytest.mark.parametrize("how", ["lost", "ecc"])
def test_a_lost_gpu_is_quarantined_its_stages_fail_with_the_reason_and_the_others_go_on(how: str, gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    driver.set(1, ecc=2, ecc_uncorrected=3)  # from before this node: no matter
    with Node(on_gpus()) as node:
        assert {o.outcome for o in translate(node, 2)} == {"ok"}
        wait_until(lambda: all_held(node))
        assert health(node)["ready"] and not health(node)["notes"]
        reason = lose(driver, how)
        wait_until(lambda: not roles(node) & {"repair@cuda:1/0", "nmt@cuda:1/0"})
        wait_until(lambda: all(f"stage {name}: {reason}" in health(node)["reason"] for name in ("nmt", "repair")))
        seen = health(node)
        assert not seen["ready"] and not seen["stages"]["asr"]["reason"]
        row = wait_until(lambda: device(node, "cuda:1").get("quarantined") and device(node, "cuda:1"))
        assert row["grantable_bytes"] == 0 < row["total_bytes"]
        assert reason.endswith(row["quarantined"]) and row["lost_bytes"] == taken("repair") + taken("nmt")
        states = {row["worker"].partition("@")[0]: row["state"] for row in node.stats()["leases"]}
        assert states == {"asr": "held", "tts": "held", "repair": "lost", "nmt": "lost"}
        told = command(node, "health")
        assert told.returncode == 1 and f"device {reason}" in told.stdout
        assert "quarantined" in command(node, "stats").stdout
        with node.client() as client, client.session(source="en", target="de", pipeline="transcribe") as session:
            session.submit(Marks().make("a", 0))
            assert next(iter(session.outcomes(timeout_s=30))).outcome == "ok"
        kill(process_of(node, "asr@cuda:0/0")["pid"])
        loaded(node, "asr@cuda:0/0")
        with node.client() as client, client.session(source="en", target="de") as session:
            session.submit(Marks().make("a", 0))
            outcome = next(iter(session.outcomes(timeout_s=30)))
        assert (outcome.outcome, outcome.code) == ("error", "failed") and reason in outcome.error


def test_where_other_devices_do_its_work_the_node_serves_on_and_says_so(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    with Node(both()) as node:
        assert {o.outcome for o in translate(node, 4)} == {"ok"}
        lost = {role for role in roles(node) if "@cuda:1/" in role}
        assert lost == {"asr@cuda:1/0", "nmt@cuda:1/0"}
        driver.lose(1)
        wait_until(lambda: not roles(node) & lost)
        assert {o.outcome for o in translate(node, 8)} == {"ok"}
        seen = wait_until(lambda: health(node)["stages"]["asr"].get("note") and health(node))
        assert seen["ready"] and "device cuda:1 is quarantined: GPU is lost" in seen["notes"][0]
        assert command(node, "health").returncode == 0
        assert node.stats()["scheduler"]["concurrency"]["asr"] == 1
        doctor = subprocess.run(
            [sys.executable, str(ROOT / "run_node.py"), "doctor", "--connect", node.ctl_endpoint],
            capture_output=True, text=True, cwd=ROOT,
        ).stdout  # fmt: skip
        assert "device cuda:1 is quarantined" in doctor


@pytest.mark.parametrize("victim", ["arbiter", "scheduler"])
def test_the_quarantine_outlives_any_process_and_the_gpu_s_return(victim: str, gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    with Node(both()) as node:
        driver.lose(1)
        wait_until(lambda: not [role for role in roles(node) if "@cuda:1/" in role])
        driver.restore(1)
        old = process_of(node, victim)
        kill(old["pid"])
        wait_until(lambda: victim in roles(node) and process_of(node, victim)["incarnation"] > old["incarnation"])
        assert {o.outcome for o in translate(node, 4)} == {"ok"}
        assert wait_until(lambda: device(node, "cuda:1").get("quarantined")) == "GPU is lost"
        assert not [role for role in roles(node) if "@cuda:1/" in role] and health(node)["notes"]


def test_a_driver_that_does_not_answer_is_said_while_stages_serve_on_and_is_no_health_where_one_is_to_load(
    gpus: Gpus,  # noqa: F811
) -> None:
    def asked(code: int, word: str) -> str:
        done = command(node, "health")
        return done.stdout if done.returncode == code and word in done.stdout else ""

    driver = gpus(*two())
    with Node(on_gpus(deadlines={"unreadable_s": 0.5})) as node:
        assert "cannot be read" not in asked(0, "serving at")
        driver.hang()
        said = wait_until(lambda: asked(0, "cannot be read"))
        assert all(f"device cuda:{number} cannot be read, its driver has said nothing" in said for number in range(2))
        assert "device cpu" not in said and {o.outcome for o in translate(node, 2)} == {"ok"}
        kill(process_of(node, "nmt@cuda:1/0")["pid"])
        wait_until(lambda: asked(1, "stage nmt: the memory of cuda:1 cannot be read"))
        driver.resume()
        wait_until(lambda: "cannot be read" not in asked(0, "serving at") and asked(0, "serving at"))


def test_a_gpu_whose_driver_hangs_keeps_no_other_one_from_granting_nor_the_arbiter_or_the_node_from_ending(
    gpus: Gpus,  # noqa: F811
) -> None:
    driver = gpus(*two())
    with Node(on_gpus(deadlines={"unreadable_s": 0.5})) as node:

        def is_old(name: str) -> bool:
            return bool(device(node, name).get("snapshot_age_ms", 0) > 500)

        def granted(name: str) -> str:
            with Lease(GIB, name, wait_s=0.0, ctl_endpoint=node.ctl_endpoint) as lease:
                return lease.device

        driver.hang(gpu=1)
        wait_until(lambda: is_old("cuda:1"))
        for _ in range(2):
            dead = process_of(node, "asr@cuda:0/0")
            kill(dead["pid"])
            wait_until(lambda dead=dead: process_of(node, "asr@cuda:0/0")["incarnation"] > dead["incarnation"])
            wait_until(lambda: process_of(node, "asr@cuda:0/0")["phase"] == "loaded")
            assert granted("cuda:0") == granted("") == "cuda:0" and not is_old("cuda:0")
            with pytest.raises(DragomanError, match="the memory of cuda:1 cannot be read"):
                granted("cuda:1")
            before = process_of(node, "arbiter")["incarnation"]  # the next one finds a GPU that hangs already
            kill(process_of(node, "arbiter")["pid"])
            wait_until(lambda before=before: process_of(node, "arbiter")["incarnation"] > before)
            wait_until(lambda: device(node, "cuda:0").get("snapshot_age_ms", -1) >= 0)
        driver.resume()
        wait_until(lambda: 0 <= device(node, "cuda:1").get("snapshot_age_ms", -1) < 500)
        assert granted("cuda:1") == "cuda:1"
        driver.hang(gpu=1)
        wait_until(lambda: is_old("cuda:1"))
        arbiter = process_of(node, "arbiter")["pid"]
    assert not is_alive(arbiter)


def test_a_gpu_that_hangs_when_the_node_starts_is_quarantined_and_the_others_serve(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    driver.hang(gpu=1)
    anywhere = {name: {"devices": ["cuda:0", "cuda:1"]} for name in HOME}
    with Node(config(stages=anywhere, deadlines={"driver_s": 0.5})) as node:
        assert {o.outcome for o in translate(node, 4)} == {"ok"}
        assert {role.partition("@")[2] for role in roles(node) if "@" in role} == {"cuda:0/0"}
        why = "the driver has not answered for 0.5 s"
        assert node.stats()["quarantined"] == {"cuda:1": why}
        done = command(node, "health")
        assert done.returncode == 0 and f"device cuda:1 is quarantined: {why}" in done.stdout
        shown = command(node, "stats").stdout
        assert any("cuda:1" in line and "quarantined" in line for line in shown.splitlines())
        driver.resume()  # not while the node runs
        assert {o.outcome for o in translate(node, 4)} == {"ok"} and node.stats()["quarantined"] == {"cuda:1": why}
    with pytest.raises(DragomanError, match=r"stages\.repair\.devices.*cuda:1: the driver has not answered"):
        driver.hang(gpu=1)
        with Node(on_gpus(deadlines={"driver_s": 0.5})):
            pass


@pytest.mark.parametrize("word", ["use", "variable"])
def test_a_node_does_not_ask_a_gpu_that_it_is_not_to_use(
    word: str,
    gpus: Gpus,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = gpus(*two())
    driver.hang(gpu=1)
    if word == "variable":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with Node(config(devices={"use": ["cuda:0", "cpu"] if word == "use" else ["auto"]})) as node:
        assert {o.outcome for o in translate(node, 2)} == {"ok"}
        stats = node.stats()
        assert stats["quarantined"] == {} and set(stats["arbiter"]["devices"]) == {"cuda:0", "cpu"}


def test_a_node_whose_driver_hangs_when_it_starts_serves_on_the_cpu(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    driver.hang()
    with Node(config(deadlines={"driver_s": 0.5})) as node:
        assert {o.outcome for o in translate(node, 2)} == {"ok"}
        assert {role.partition("@")[2] for role in roles(node) if "@" in role} == {"cpu/0"}
        (why,) = node.stats()["quarantined"].values()
        assert "has not answered" in why and any("has not answered" in note for note in health(node)["notes"])


def test_memory_of_a_worker_that_cannot_be_killed_is_lost_and_the_node_goes_on(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    vram = {name: {"vram_bytes": nbytes // 4} for name, nbytes in VRAM.items()}
    with Node(both(options=vram, deadlines=EAGER)) as node:
        wait_until(lambda: [row["state"] for row in node.stats()["leases"]] == ["held"] * 6)
        before = driver.truth(0)
        worker = loaded(node, "asr@cuda:0/0")
        with stuck_in_its_exit(worker["pid"]):
            wait_until(lambda: process_of(node, "asr@cuda:0/0")["state"] == "stuck")
            lease = wait_until(lambda: [row for row in node.stats()["leases"] if row["state"] == "lost"])
            assert [row["worker"] for row in lease] == [f"asr@cuda:0/0#{worker['incarnation']}"]
            assert {o.outcome for o in translate(node, 4)} == {"ok"}
            (note,) = health(node)["notes"]
            assert f"asr@cuda:0/0 (pid {worker['pid']}) cannot be killed" in note and health(node)["ready"]
            row = device(node, "cuda:0")
            assert row["lost_bytes"] == max(lease[0]["nbytes"], lease[0]["held_bytes"]) and driver.truth(0) == before
        loaded(node, "asr@cuda:0/0")
        wait_until(lambda: device(node, "cuda:0")["lost_bytes"] == 0)
        assert {o.outcome for o in translate(node, 4)} == {"ok"} and not health(node)["notes"]


def test_a_node_with_a_worker_that_cannot_be_killed_ends_all_the_same(gpus: Gpus) -> None:  # noqa: F811
    gpus(*two())
    with Node(both(deadlines=EAGER)) as node:
        worker = loaded(node, "asr@cuda:0/0")  # a worker that still starts may be silent for longer
        with stuck_in_its_exit(worker["pid"]):
            wait_until(lambda: process_of(node, worker["role"])["state"] == "stuck")
            node.close()
            assert node.wait(0) == 0
