"""What operators order and what of it still holds, on the bare core."""

from __future__ import annotations

import pytest

from engine import knobs
from engine.boot import SchedulerBoot, StagePlan, WorkerPlan
from engine.config import Config, DeadlinesSection, StageSection
from engine.exits import PARKED
from engine.supervisor.events import Exited, Tick
from engine.supervisor.orders import Orders
from engine.supervisor.roster import Roster, State
from ipc.errors import DragomanError
from ipc.messages import Alive, Errand, Preload
from ipc.messages import Orders as Standing
from tests.supervisor.test_lifecycle import OTHER, WORKER, World

HOMES = (WorkerPlan(WORKER, "asr", "cpu"), WorkerPlan(OTHER, "nmt", "cpu"))


def serving(**rest) -> World:
    """A node at work, its workers loaded, that takes orders."""
    world = World(**rest)
    world.life.orders = Orders(HOMES, {"asr": True, "nmt": False}, ("cpu", "cuda:0"))
    world.serving()
    for worker in HOMES:
        world.say(worker.role, Alive("loaded"))
    return world


def order(world: World, verb: str, target: str, **rest) -> list:
    """What the scheduler is told."""
    posts = world.life.order(verb, target, world.now, **rest).actions
    return [post.message for post in posts if post.role == "scheduler"]


def ends(world: World, role: str) -> None:
    """A worker leaves as it was told, and the next one speaks."""
    world.do(Exited(role, PARKED))
    world.do(Tick())
    world.say(role, Alive("empty"))


def standing(world: World) -> Standing:
    return world.life.orders.standing()


def test_the_scheduler_is_told_the_whole_of_what_holds() -> None:
    world = serving()
    assert order(world, "drain", "cpu") == [Standing(("cpu",))]
    assert order(world, "pin", "nmt") == [Standing(("cpu",), (), {"stages.nmt.pinned": True})]
    assert order(world, "unload", "asr")[0].errands == (Errand(WORKER, 1, False),)
    assert order(world, "resume", "cpu")[0] == Standing((), (Errand(WORKER, 1, False),), {"stages.nmt.pinned": True})


def test_a_restart_is_over_when_the_next_life_speaks() -> None:
    world = serving()
    order(world, "restart", WORKER)
    world.say(WORKER, Alive("loaded"))
    assert world.life.orders.pending(world.life.roster) == [WORKER], "the present life is not the next one"
    ends(world, WORKER)
    assert world.posted(Standing) == ["scheduler"] and standing(world) == Standing()


def test_an_unload_holds_until_there_was_work_for_the_model() -> None:
    world = serving()
    order(world, "unload", "asr")
    ends(world, WORKER)
    assert standing(world).errands == (Errand(WORKER, 1, False),) and not world.life.orders.pending(world.life.roster)
    world.say(WORKER, Alive("loading"))
    assert standing(world) == Standing()


def test_load_undoes_an_unload_and_says_that_the_model_is_wanted() -> None:
    world = serving()
    order(world, "unload", "asr")
    assert order(world, "load", "asr") == [Standing(), Preload("asr")]


def test_a_new_scheduler_hears_the_orders_before_it_is_told_to_serve() -> None:
    world = serving()
    order(world, "drain", "cpu")
    world.do(Exited("scheduler", -9))
    world.do(Tick())
    posts = [a.message for a in world.say("scheduler", Alive("running")) if getattr(a, "role", "") == "scheduler"]
    assert Standing(("cpu",)) in posts
    assert [type(p).__name__ for p in posts].index("Orders") < [type(p).__name__ for p in posts].index("Serve")


def test_the_arbiter_is_told_too_and_each_new_one() -> None:
    world = serving()
    posts = world.life.order("drain", "cuda:0", world.now).actions
    assert [post.message for post in posts if post.role == "arbiter"] == [Standing(("cuda:0",))]
    world.do(Exited("arbiter", -9))
    world.do(Tick())
    told = [a.message for a in world.say("arbiter", Alive("started")) if getattr(a, "role", "") == "arbiter"]
    assert Standing(("cuda:0",)) in told


def test_a_worker_that_was_given_up_lives_again_with_its_whole_budget() -> None:
    world = serving(restart_budget=0)
    world.do(Exited(WORKER, -9))
    assert world.life.roster[WORKER].state is State.SPENT
    with pytest.raises(DragomanError, match="ctl restart asr"):
        order(world, "load", "asr")
    assert order(world, "restart", WORKER)[0] == Standing(), "there is no life to end"
    world.do(Tick())
    assert world.life.roster[WORKER].state is State.STARTING


def test_an_errand_ends_with_a_worker_that_is_given_up() -> None:
    world = serving(restart_budget=0)
    order(world, "restart", WORKER)
    world.do(Exited(WORKER, -9))
    assert standing(world) == Standing()


def test_pins_are_told_only_where_they_are_not_as_configured() -> None:
    world = serving()
    order(world, "unpin", "asr")
    assert standing(world).knobs == {"stages.asr.pinned": False}
    order(world, "pin", "asr")
    assert standing(world).knobs == {}


@pytest.mark.parametrize(
    ("verb", "target", "again"),
    [
        ("restart", WORKER, "being restarted already"),
        ("drain", "cpu", "drained already"),
        ("pin", "nmt", "pinned already"),
        ("unload", "nmt", "on its way out already"),
    ],
)
def test_what_is_so_already_is_refused(verb: str, target: str, again: str) -> None:
    world = serving()
    order(world, verb, target)
    before = standing(world)
    with pytest.raises(DragomanError, match=again):
        order(world, verb, target)
    assert standing(world) == before


# Of one stage: a worker on each of two GPUs, one that is extra, two on standby.
ON_0, ON_1, EXTRA, STANDBY, LAST = "asr@cuda:0/0", "asr@cuda:1/0", "asr@cuda:0/1", "asr@cuda:2/0", "asr@cpu/0"
FLEET = (
    WorkerPlan(ON_0, "asr", "cuda:0"),
    WorkerPlan(ON_1, "asr", "cuda:1"),
    WorkerPlan(STANDBY, "asr", "cuda:2", standby=True),
    WorkerPlan(LAST, "asr", "cpu", standby=True),
    WorkerPlan(EXTRA, "asr", "cuda:0", extra=True),
)


def fleet() -> tuple[Orders, Roster]:
    """Orders to this stage, whose workers live and wait without a model."""
    roster = Roster([worker.role for worker in FLEET], DeadlinesSection(), 3)
    roster.tick(0.0)
    for worker in FLEET:
        roster.heard(worker.role, 1, 0.0, "empty")
    return Orders(FLEET, {}, ("cuda:0", "cuda:1", "cuda:2", "cpu")), roster


def spend(roster: Roster, role: str) -> None:
    roster.exited(role, -9)
    roster.give_up(role)


def test_to_load_a_stage_is_to_load_its_models_and_no_extra_worker_nor_one_on_standby() -> None:
    orders, roster = fleet()
    assert orders.load("asr", roster) == [ON_0, ON_1]


def test_models_of_a_drained_device_are_left_out_of_a_load() -> None:
    orders, roster = fleet()
    orders.drain("cuda:0")
    assert orders.load("asr", roster) == [ON_1]


def test_where_no_other_may_load_the_first_on_standby_does() -> None:
    orders, roster = fleet()
    orders.drain("cuda:0")
    spend(roster, ON_1)
    assert orders.load("asr", roster) == [STANDBY]
    orders.drain("cuda:2")
    assert orders.load("asr", roster) == [LAST]
    spend(roster, LAST)
    with pytest.raises(DragomanError, match="no worker left"):
        orders.load("asr", roster)
    for device in ("cuda:1", "cpu"):
        orders.drain(device)
    with pytest.raises(DragomanError, match="is drained"):
        orders.load("asr", roster)


def test_a_load_ends_every_unload_of_the_stage() -> None:
    orders, roster = fleet()
    for role in (ON_0, EXTRA):
        roster.heard(role, 1, 0.0, "loaded")
    assert orders.unload("asr", roster) == [ON_0, EXTRA]
    orders.load("asr", roster)
    assert orders.standing() == Standing()


def test_a_pin_is_about_no_extra_worker() -> None:
    orders, _ = fleet()
    assert orders.pin("asr", True) == [ON_0, ON_1, STANDBY, LAST]


@pytest.mark.parametrize("phase", ["waiting", "loading", "loaded"])
def test_a_drain_is_done_when_nobody_on_that_device_has_a_model_or_will(phase: str) -> None:
    orders, roster = fleet()
    for role in (ON_0, EXTRA, ON_1):
        roster.heard(role, 1, 0.0, phase)
    orders.drain("cuda:0")
    assert orders.pending(roster) == [ON_0, EXTRA]
    roster.exited(ON_0, PARKED)  # the last that was heard of it is that it had its model
    assert orders.pending(roster) == [EXTRA]
    roster.heard(EXTRA, 1, 0.0, "empty")
    assert orders.pending(roster) == []


def test_models_of_a_drained_device_are_not_loaded() -> None:
    world = serving()
    order(world, "drain", "cpu")
    with pytest.raises(DragomanError, match="cpu is drained"):
        order(world, "load", "asr")


def test_orders_are_taken_only_while_the_node_serves() -> None:
    with pytest.raises(DragomanError, match="the node is starting"):
        World().life.order("drain", "cpu", 0.0)


# ------------------------------------------------------------ knobs

CONFIG = Config(stages={"asr": StageSection(max_batch=4), "nmt": StageSection()})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("stages.asr.max_batch=2", 2),
        (" stages.nmt.keep_alive_s = -1 ", -1.0),
        ("deadlines.turn_s=0.5", 0.5),
        ("node.max_retries=0", 0),
    ],
)
def test_a_knob_has_a_value_of_its_type(text: str, value: float) -> None:
    name, number = knobs.read(CONFIG, text)
    assert (name, number) == (text.partition("=")[0].strip(), value) and type(number) is type(value)


def test_a_knob_of_a_further_model_may_be_named_as_the_configuration_does() -> None:
    config = Config(stages={"tts": StageSection(), "tts.es": StageSection(max_batch=4)})
    for name in ("stages.tts.models.es.max_batch", "stages.tts.es.max_batch"):
        assert knobs.read(config, f"{name}=3") == ("stages.tts.es.max_batch", 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages.asr.max_batch=5", "the highest is 4, as configured"),
        ("stages.asr.max_batch=0", "the lowest is 1"),
        ("stages.asr.max_batch=2.5", "a whole number"),
        ("stages.vad.max_batch=1", "did you mean stages.asr.max_batch"),
        ("deadlines.turns=1", "did you mean deadlines.turn_s"),
        ("deadlines.turn_s=inf", "the highest is"),
        ("node.mode=serial", "these can: node.max_retries"),
        ("nothing", "sets nothing"),
    ],
)
def test_what_is_no_knob_or_no_value_for_it_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(DragomanError) as refused:
        knobs.read(CONFIG, text)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_every_knob_is_a_field_of_what_the_scheduler_is_born_with() -> None:
    """Else a value would be taken and go nowhere."""
    assert {*knobs.NODE} <= {*SchedulerBoot.__struct_fields__}
    assert {*knobs.DEADLINES} <= {*DeadlinesSection.__struct_fields__}
    assert {*knobs.STAGE, "pinned"} <= {*StagePlan.__struct_fields__}
