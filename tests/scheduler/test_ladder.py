"""Down the ladder when memory is refused, and up again when there is room: each rule by an example on the bare core."""

from __future__ import annotations

from engine.boot import VariantPlan, WorkerPlan
from engine.scheduler.book import SUPERVISOR
from engine.scheduler.workers import Life
from ipc.messages import Denied, Failing, Gone, Here, Load, Loaded, Loading, Orders, Park, Ready, Room, Serve, Vacate
from tests.scheduler.world import DEADLINES, World, text_stage

GPU, OTHER, CPU = "cuda:0", "cuda:1", "cpu"
QUIET = DEADLINES.promote_s


def variant(name: str, nbytes: int) -> VariantPlan:
    return VariantPlan(name=name, model="m", compute_type=name, estimate_bytes=nbytes)


SMALLER = (variant("int8", 600), variant("int4", 300))


def worker(
    device: str, *, standby: bool = False, smaller: tuple[VariantPlan, ...] = (), first: int = 0, best: int = 0
) -> WorkerPlan:
    return WorkerPlan(
        role=f"b@{device}/0", stage="b", device=device, estimate_bytes=1000, standby=standby, smaller=smaller,
        variant=first, best=best,
    )  # fmt: skip


class Ladder(World):
    """One stage; its workers are here and were told to load what is to be loaded."""

    def __init__(self, *workers: WorkerPlan, books: dict[str, str] | None = None, **fields) -> None:
        super().__init__(text_stage("b", workers=workers, **fields), books=books)
        for plan in workers:
            self.come(plan.device)
        self.open()

    def role(self, device: str) -> str:
        return f"b@{device}/0"

    def come(self, device: str, **here) -> None:
        """The next life of a worker says that it is here."""
        role = self.role(device)
        self.lives[role] = self.lives.get(role, 0) + 1
        self.board[self.peer(role)] = []
        self.hear(device, Here(**here))

    def hear(self, device: str, *messages) -> None:
        for message in messages:
            self.core.handle(self.peer(self.role(device)), message, self.now)
            self.turn()

    def deny(self, device: str, code: str = "no_vram") -> None:
        self.hear(device, Denied(f"{device} has no room", code))

    def load(self, device: str, variant: int = 0) -> None:
        self.hear(device, Loading("m", variant), Loaded("m", variant))

    def leave(self, device: str) -> None:
        """It ends, as it was told, and its next life comes."""
        assert self.told(device)[-1] == "Park"
        role = self.role(device)
        self.core.handle(SUPERVISOR, Gone(role, self.lives[role], "parked", parked=True), self.now)
        self.turn()
        self.come(device)

    def room(self, device: str, nbytes: int, arbiter: int = 1) -> None:
        self.core.handle(f"arbiter#{arbiter}", Room(device, nbytes), self.now)
        self.turn()

    def told(self, device: str) -> list[str]:
        """What every life of this worker was told: "Load 1" (its variant), "Load 1 modestly", "Park"."""
        said = []
        for send in self.sent:
            if send.peer.startswith(f"{self.role(device)}#"):
                match send.message:
                    case Load(variant=number, wait_s=wait_s):
                        said.append(f"Load {number}" + (" modestly" if wait_s is not None else ""))
                    case Park():
                        said.append("Park")
        return said


def serving(ladder: Ladder) -> Ladder:
    ladder.core.handle(SUPERVISOR, Serve(), ladder.now)
    return ladder


# ---------------------------------------------------------------- down


def test_a_refused_lease_walks_down_the_variants_in_the_same_process() -> None:
    found = Ladder(worker(GPU, smaller=SMALLER))
    found.deny(GPU)
    found.deny(GPU)
    assert found.told(GPU) == ["Load 0", "Load 1", "Load 2"]
    found.load(GPU, 2)
    found.admit(0)
    found.run_everything()
    assert found.outcomes[0].outcome.degraded == "b: with int4" and found.outcomes[0].outcome.outcome == "ok"


def test_a_failed_load_walks_down_in_a_new_process() -> None:
    """What a failed load leaves on the device goes with its process."""
    found = Ladder(worker(GPU, smaller=SMALLER))
    found.deny(GPU, "oom")
    assert found.told(GPU) == ["Load 0", "Park"]
    found.leave(GPU)
    assert found.told(GPU)[-1] == "Load 1"


def test_after_the_last_variant_comes_another_device_and_then_the_cpu() -> None:
    found = Ladder(worker(GPU, smaller=SMALLER[:1]), worker(OTHER, standby=True), worker(CPU, standby=True))
    assert found.told(OTHER) == found.told(CPU) == []
    found.deny(GPU)
    found.deny(GPU)
    assert (found.told(GPU), found.told(OTHER), found.told(CPU)) == (["Load 0", "Load 1"], ["Load 0"], [])
    found.deny(OTHER)
    assert found.told(CPU) == ["Load 0"]
    found.load(CPU)
    assert found.messages(Ready, SUPERVISOR)
    found.admit(0)
    found.run_everything()
    assert found.outcomes[0].outcome.degraded == "b: on the cpu, its own device has no room"


def test_another_gpu_is_no_degradation() -> None:
    found = Ladder(worker(GPU), worker(OTHER, standby=True))
    found.deny(GPU)
    found.load(OTHER)
    found.admit(0)
    found.run_everything()
    assert found.outcomes[0].outcome.degraded == ""


def test_where_nothing_is_left_the_start_fails_with_the_last_reason() -> None:
    found = Ladder(worker(GPU, smaller=SMALLER[:1]), worker(CPU, standby=True))
    for device in (GPU, GPU, CPU):
        assert not found.messages(Failing, SUPERVISOR)
        found.deny(device)
    assert found.messages(Failing, SUPERVISOR)[0].reason == "stage b cannot start: cpu has no room"


def test_a_serving_node_tries_all_of_it_again_after_a_while_from_the_top() -> None:
    found = serving(Ladder(worker(GPU, smaller=SMALLER[:1]), worker(CPU, standby=True)))
    for device in (GPU, GPU, CPU):
        found.deny(device)
    found.advance(DEADLINES.retry_delay_s + 0.1)
    assert found.told(GPU) == ["Load 0", "Load 1", "Load 0"]
    for device in (GPU, GPU):
        found.deny(device)
    assert found.told(CPU) == ["Load 0", "Load 0"]


def test_an_utterance_that_waited_for_memory_in_vain_says_what_was_needed() -> None:
    found = serving(Ladder(worker(GPU)))
    found.deny(GPU)
    found.admit(0, budget_ms=100)
    found.advance(0.2)
    assert "it was loading at b (cuda:0 has no room)" in found.outcomes[0].outcome.error


def test_the_plan_may_begin_with_a_smaller_variant() -> None:
    found = Ladder(worker(GPU, smaller=SMALLER, first=1, best=1))
    assert found.told(GPU) == ["Load 1"]
    found.load(GPU, 1)
    found.room(GPU, 10_000)
    found.advance(3 * QUIET)
    assert found.told(GPU) == ["Load 1"], "and nothing better is tried than was planned"


def test_a_plan_beside_other_programs_is_left_behind_when_they_are_gone() -> None:
    found = Ladder(worker(GPU, smaller=SMALLER, first=1, best=0))
    found.load(GPU, 1)
    found.room(GPU, 400)
    found.advance(QUIET + 1)
    found.leave(GPU)
    assert found.told(GPU) == ["Load 1", "Park", "Load 0 modestly"]


# ---------------------------------------------------------------- up: from standby


def stood_in() -> Ladder:
    """The GPU was refused, and the CPU serves."""
    found = serving(Ladder(worker(GPU), worker(CPU, standby=True)))
    found.deny(GPU)
    found.load(CPU)
    return found


def test_room_for_a_while_brings_the_stage_back_and_the_cpu_rests() -> None:
    found = stood_in()
    found.room(GPU, 1000)
    found.advance(QUIET - 1)
    assert found.told(GPU) == ["Load 0"]
    found.advance(1.5)
    assert found.told(GPU) == ["Load 0", "Load 0 modestly"]
    assert found.told(CPU) == ["Load 0"], "it goes on serving meanwhile"
    found.load(GPU)
    assert found.told(CPU) == ["Load 0", "Park"]
    found.leave(CPU)
    assert found.told(CPU) == ["Load 0", "Park"], "it rests until it is needed"
    found.admit(0)
    found.run_everything()
    assert found.outcomes[0].outcome.degraded == ""


def test_the_cpu_ends_its_runs_first() -> None:
    found = stood_in()
    found.admit(0)
    found.room(GPU, 1000)
    found.advance(QUIET + 1)
    found.load(GPU)
    found.admit(1)
    assert found.told(CPU) == ["Load 0"] and [i.index for i in found.board[found.peer("b@cuda:0/0")]] == [1]
    found.done(found.peer("b@cpu/0"))
    assert found.told(CPU) == ["Load 0", "Park"]
    found.run_everything()
    assert found.ended() == {("s", 0): "ok", ("s", 1): "ok"}


def test_too_little_room_or_too_short_brings_nobody_back() -> None:
    found = stood_in()
    found.room(GPU, 999)
    found.advance(3 * QUIET)
    for _ in range(10):  # it comes and goes
        found.room(GPU, 5000)
        found.advance(QUIET - 1)
        found.room(GPU, 500)
        found.advance(1)
    assert found.told(GPU) == ["Load 0"]


def test_a_way_back_that_somebody_else_took_leaves_all_as_it_was() -> None:
    found = stood_in()
    found.room(GPU, 1000)
    found.advance(QUIET + 1)
    found.deny(GPU)
    found.advance(1)
    assert found.told(GPU) == ["Load 0", "Load 0 modestly"], "not at once again"
    found.admit(0)
    found.run_everything()
    assert found.ended() == {("s", 0): "ok"} and found.core.book.workers["b@cpu/0"].life is Life.LOADED


def test_nobody_goes_back_to_a_device_that_an_operator_drains() -> None:
    found = stood_in()
    found.core.handle(SUPERVISOR, Orders(drained=(GPU,)), found.now)
    found.room(GPU, 1000)
    found.advance(3 * QUIET)
    assert found.told(GPU) == ["Load 0"] and found.core.ladder.promoted_total == 0
    found.core.handle(SUPERVISOR, Orders(), found.now)
    found.turn()
    assert found.told(GPU)[-1].startswith("Load 0"), "it is used again"


def test_what_a_dead_arbiter_said_is_no_room() -> None:
    found = stood_in()
    found.room(GPU, 1000)
    found.advance(QUIET / 2)
    found.core.handle(SUPERVISOR, Gone("arbiter", 1, "killed"), found.now)
    found.turn()
    found.advance(3 * QUIET)
    assert found.told(GPU) == ["Load 0"]
    found.room(GPU, 1000, arbiter=2)
    found.room(GPU, 0, arbiter=1)  # late words
    found.advance(QUIET + 1)
    assert found.told(GPU)[-1] == "Load 0 modestly"


def test_what_a_dead_arbiter_said_of_another_device_is_no_room_either_whatever_news_comes_first() -> None:
    found = stood_in()
    found.room(GPU, 1000)
    found.advance(QUIET - 1)
    found.room(OTHER, 500, arbiter=2)  # its successor speaks before its death is told
    found.advance(QUIET)
    assert found.told(GPU) == ["Load 0"]
    found.room(GPU, 1000, arbiter=2)
    found.advance(QUIET - 1)
    found.core.handle(SUPERVISOR, Gone("arbiter", 1, "killed"), found.now)  # and that is no news of the successor
    found.turn()
    found.advance(1.1)
    assert found.told(GPU)[-1] == "Load 0 modestly"


def test_a_gpu_without_memory_of_its_own_has_the_room_that_the_machine_has() -> None:
    found = serving(Ladder(worker(GPU), worker(CPU, standby=True), books={GPU: CPU}))
    found.deny(GPU)
    found.load(CPU)
    found.room(CPU, 1000)
    found.advance(QUIET + 1)
    assert found.told(GPU)[-1] == "Load 0 modestly"


def test_when_it_loses_its_device_again_the_rested_cpu_is_called_again() -> None:
    found = stood_in()
    found.room(GPU, 1000)
    found.advance(QUIET + 1)
    found.load(GPU)
    found.leave(CPU)
    found.room(GPU, 0)
    found.kill("b@cuda:0/0")
    found.come(GPU)
    found.deny(GPU)
    assert found.told(CPU) == ["Load 0", "Park", "Load 0"]


# ---------------------------------------------------------------- up: to a better variant


def smaller(**fields) -> Ladder:
    """It runs its second variant."""
    found = serving(Ladder(worker(GPU, smaller=SMALLER), **fields))
    found.deny(GPU)
    found.deny(GPU)
    found.load(GPU, 2)
    return found


def test_an_idle_worker_starts_anew_with_the_best_variant_that_fits() -> None:
    found = smaller()
    found.room(GPU, 300)  # and the 300 that it holds
    found.advance(QUIET + 1)
    assert found.told(GPU)[-1] == "Park"
    found.leave(GPU)
    assert found.told(GPU)[-1] == "Load 1 modestly"
    found.load(GPU, 1)
    found.room(GPU, 400)
    found.advance(QUIET + 1)
    found.leave(GPU)
    assert found.told(GPU)[-1] == "Load 0 modestly"
    found.load(GPU)
    found.admit(0)
    found.run_everything()
    assert found.outcomes[0].outcome.degraded == ""


def test_a_busy_worker_does_its_work_first() -> None:
    found = smaller(timeout_base_s=3 * QUIET)
    found.admit(0, budget_ms=int(3000 * QUIET))
    found.room(GPU, 1000)
    found.advance(QUIET + 3)
    assert "Park" not in found.told(GPU)
    found.done(found.peer("b@cuda:0/0"))
    assert found.told(GPU)[-1] == "Park"


def test_a_worker_whose_batch_still_fills_does_that_first() -> None:
    found = smaller(max_batch=4, max_delay_ms=1000.0 * (QUIET + 5))
    found.admit(0, budget_ms=int(3000 * QUIET))
    found.room(GPU, 1000)
    found.advance(QUIET + 3)
    assert "Park" not in found.told(GPU) and not found.board[found.peer("b@cuda:0/0")]


def test_a_better_variant_that_finds_no_room_after_all_goes_down_again() -> None:
    found = smaller()
    found.room(GPU, 1000)
    found.advance(QUIET + 1)
    found.leave(GPU)
    assert found.told(GPU)[-1] == "Load 0 modestly"
    found.deny(GPU)
    found.deny(GPU)
    assert found.told(GPU)[-2:] == ["Load 1 modestly", "Load 2 modestly"]
    found.load(GPU, 2)
    assert found.core.book.workers["b@cuda:0/0"].degraded == "with int4"


def test_a_model_that_rests_comes_back_as_the_best_variant_that_fits() -> None:
    found = smaller(keep_alive_s=1.0)
    found.advance(1.1)
    found.leave(GPU)
    assert found.told(GPU)[-1] == "Park"
    found.room(GPU, 700)
    found.advance(QUIET + 1)
    assert found.told(GPU)[-1] == "Park", "nobody needs it yet"
    found.admit(0)
    assert found.told(GPU)[-1] == "Load 1"


# ---------------------------------------------------------------- beyond a scheduler's life


def test_the_next_scheduler_hears_which_variant_runs() -> None:
    found = World(text_stage("b", workers=(worker(GPU, smaller=SMALLER),)), epoch=2)
    role = "b@cuda:0/0"
    found.lives[role], found.board[f"{role}#1"] = 1, []
    found.core.handle(found.peer(role), Here("loaded", variant=2), found.now)
    found.turn()
    found.open()
    found.admit(0)
    found.run_everything()
    assert found.outcomes[0].outcome.degraded == "b: with int4"


def test_a_worker_that_dies_keeps_its_variant() -> None:
    found = smaller()
    found.kill("b@cuda:0/0")
    found.come(GPU)
    assert found.told(GPU)[-1] == "Load 2"


# ---------------------------------------------------------------- while others want room


def test_whoever_starts_anew_loads_again_whatever_others_want_meanwhile() -> None:
    after_a_failed_load, for_a_better_variant = Ladder(worker(GPU, smaller=SMALLER)), smaller()
    after_a_failed_load.deny(GPU, "oom")
    for_a_better_variant.room(GPU, 300)
    for_a_better_variant.advance(QUIET + 1)
    for found in (after_a_failed_load, for_a_better_variant):
        assert found.told(GPU)[-1] == "Park"
        found.core.handle("arbiter#1", Vacate(GPU, 500, "c@cuda:0/0"), found.now)
        found.advance(2 * DEADLINES.turn_s)
        found.leave(GPU)
        assert found.told(GPU)[-1].startswith("Load 1") and found.core.residency.parked_total == 0


def test_whoever_starts_anew_gets_no_work_when_nobody_wants_room_any_more() -> None:
    found = smaller()
    found.room(GPU, 300)
    found.advance(QUIET + 1)
    found.core.handle("arbiter#1", Vacate(GPU, 0), found.now)
    found.admit(0)
    assert found.told(GPU)[-1] == "Park" and not found.board[found.peer(found.role(GPU))]
    found.leave(GPU)
    assert found.told(GPU)[-1] == "Load 1 modestly"


# ---------------------------------------------------------------- while a device pauses


def test_nobody_goes_up_on_a_device_that_has_just_run_out_of_memory_and_the_quiet_begins_anew() -> None:
    for found in (smaller(), stood_in()):
        found.room(GPU, 1000)
        found.advance(QUIET - 1)
        before = found.told(GPU)
        for _ in range(2):
            found.core.fleet.ran_out(found.core.book.workers[found.role(GPU)], "run", found.now)
        found.turn()
        found.advance(DEADLINES.oom_hold_s + QUIET - 0.1)
        assert found.told(GPU) == before and found.core.ladder.promoted_total == 0
        found.advance(0.2)
        assert found.core.ladder.promoted_total == 1


# ---------------------------------------------------------------- several workers of one stage


def rested() -> Ladder:
    """Two workers that were idle for so long that both rested; one of them comes back for the first of the work."""
    found = serving(Ladder(worker(GPU), worker(OTHER), keep_alive_s=1.0))
    for device in (GPU, OTHER):
        found.load(device)
    found.advance(2.0)
    for device in (GPU, OTHER):
        found.leave(device)
    for index in range(4):
        found.admit(index)
    assert sorted(told[-1] for told in map(found.told, (GPU, OTHER))) == ["Load 0", "Park"], "one comes back for work"
    return found


def test_all_that_rest_come_back_while_work_waits_and_there_is_room() -> None:
    found = rested()
    back, rests = (GPU, OTHER) if found.told(GPU)[-1] == "Load 0" else (OTHER, GPU)
    found.load(back)
    found.room(rests, 999)
    assert found.told(rests)[-1] == "Park", "it needs more"
    found.room(rests, 1000)
    assert found.told(rests)[-1] == "Load 0 modestly", "nobody is to leave for it"
    found.load(rests)
    found.run_everything()
    assert set(found.ended().values()) == {"ok"}


def test_without_work_that_waits_it_rests_on() -> None:
    found = rested()
    back, rests = (GPU, OTHER) if found.told(GPU)[-1] == "Load 0" else (OTHER, GPU)
    found.load(back)
    found.run_everything()
    found.room(rests, 5000)
    assert found.told(rests)[-1] == "Park"


def test_who_finds_no_room_after_all_rests_on_and_comes_back_another_time() -> None:
    found = rested()
    back, rests = (GPU, OTHER) if found.told(GPU)[-1] == "Load 0" else (OTHER, GPU)
    found.load(back)
    found.room(rests, 1000)
    found.room(rests, 0)
    found.deny(rests)
    assert found.core.book.workers[found.role(rests)].parked and found.told(rests)[-1] == "Load 0 modestly"
    found.room(rests, 1000)
    assert found.told(rests).count("Load 0 modestly") == 2
