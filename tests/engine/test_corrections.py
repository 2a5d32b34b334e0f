"""What measurements make of an estimate: a clean one replaces the guess, a noisy one can only raise, a peak is kept."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import corrections
from engine.corrections import (
    ALLOWANCE,
    CONTEXT_ALLOWANCE,
    MODELS,
    RECENT,
    SHOWN,
    History,
    Sample,
    Subject,
    kept,
    needed,
)
from engine.estimates import ALLOCATION, Start

MIB = 2**20
GIB = 2**30
SUBJECT = Subject("asr", "asr", "/models/asr", "NVIDIA L4", "default", 1)

sizes = st.integers(0, 40 * GIB)
guesses = st.builds(lambda later, rest: Start(later + rest, later), sizes, sizes)


def load(nbytes: int, note: str = "", exact: bool = True) -> Sample:
    return Sample("load", nbytes, 0.0, exact, note, proven=exact and not note)


def run(nbytes: int, exact: bool = True) -> Sample:
    return Sample("run", nbytes, 0.0, exact, "" if exact else "as the book puts it down")


loads = st.builds(load, sizes, st.sampled_from(["", "noise"]), st.booleans())
runs = st.builds(run, sizes, st.booleans())
histories = st.lists(loads | runs, max_size=30)


@given(guesses, histories, sizes)
def test_a_noisy_sample_raises_or_changes_nothing_and_is_covered(guess, before, nbytes):
    after = needed(guess, [*before, load(nbytes, "noise")])
    assert after >= needed(guess, before)
    assert after >= nbytes + guess.later_bytes


@given(guesses, histories, runs)
def test_a_peak_raises_or_changes_nothing_and_is_covered(guess, before, peak):
    after = needed(guess, [*before, peak])
    assert after >= needed(guess, before) and after >= peak.nbytes


@given(guesses, st.lists(sizes, max_size=10), sizes)
def test_a_clean_load_replaces_factor_and_guess_within_the_allowance(guess, noise, nbytes):
    after = needed(guess, [*(load(one, "noise") for one in noise), load(nbytes)])
    exact = nbytes + guess.later_bytes
    assert exact <= after <= exact + ALLOWANCE * nbytes + ALLOCATION


@given(guesses, histories)
def test_what_is_kept_says_what_all_of_it_said(guess, several):
    assert needed(guess, kept(several)) == needed(guess, several)
    assert len(kept(several)) <= SHOWN + RECENT + 4
    kept_so_far: tuple[Sample, ...] = ()
    for one in several:
        kept_so_far = kept((*kept_so_far, one))
    assert needed(guess, kept_so_far) == needed(guess, several)


@given(guesses, histories)
def test_without_measurements_it_is_the_guess_and_it_is_never_less_than_the_runs_workspace(guess, several):
    whole = -(-guess.nbytes // ALLOCATION) * ALLOCATION
    assert needed(guess, []) == whole
    assert needed(guess, several) >= guess.later_bytes


def test_a_difference_of_two_readings_lowers_only_when_another_has_come_to_the_same():
    """A program that grew or left while the model loaded is in it, and nobody can see that."""
    guess, history = Start(4 * GIB), History()

    def asked_after(nbytes: int, note: str = "") -> int:
        nonlocal history
        history = history.learn("k", SUBJECT, guess, load(nbytes, note, exact=False))
        return history.estimate("k", guess, 8 * GIB).nbytes

    assert asked_after(2 * GIB) == 4 * GIB
    assert asked_after(3 * GIB) == 4 * GIB
    assert asked_after(2 * GIB, "noise") == 4 * GIB
    assert asked_after(int(2.05 * GIB)) < int(2.05 * GIB) * 1.06
    assert asked_after(5 * GIB) == 5 * GIB  # it may be true
    assert asked_after(2 * GIB) < 3 * GIB


def test_of_clean_loads_the_highest_of_the_newest_counts():
    guess = Start(10 * GIB)
    assert needed(guess, [load(4 * GIB), *[load(2 * GIB)] * (RECENT - 1)]) > 4 * GIB
    assert needed(guess, [load(4 * GIB), *[load(2 * GIB)] * RECENT]) < 3 * GIB


def test_a_load_that_was_read_when_its_first_run_had_begun_is_a_peak_and_its_workspace_is_asked_for_once():
    """Models that take turns are waited for: most of their loads are read so."""
    guess = Start(5 * GIB, 2 * GIB)
    first, ran = load(2 * GIB), load(4 * GIB)
    once = needed(guess, [first])
    assert 4 * GIB <= once < 4.2 * GIB
    for before in ([first], [ran]):
        history = History()
        for sample in [*before, *[ran] * 20, first, *[ran] * 20]:
            history = history.learn("k", SUBJECT, guess, sample)
        assert history.estimate("k", guess, 8 * GIB).nbytes == needed(guess, [first, ran]) < 4.3 * GIB


def test_a_load_that_lacks_more_than_a_workspace_is_not_taken_for_one_without():
    guess = Start(5 * GIB, GIB)
    assert needed(guess, [load(GIB), load(4 * GIB)]) >= 5 * GIB


def test_a_noisy_peak_gets_no_allowance_so_an_estimate_does_not_climb_from_start_to_start():
    asked, guess, seen = 4 * GIB, Start(4 * GIB), [load(2 * GIB)]
    for _ in range(20):
        seen.append(run(asked, exact=False))  # the book puts growth down to it, up to its grant
        assert needed(guess, seen) == asked
        asked = needed(guess, seen)


def test_the_source_is_said_and_how_often_it_was_measured():
    guess = Start(4 * GIB, 0, "table")
    history = History()
    assert history.estimate("k", guess, 8 * GIB) == corrections.Estimate(4 * GIB, "table")
    history = history.learn("k", SUBJECT, guess, load(3 * GIB, "noise"))
    lower = history.estimate("k", guess, 8 * GIB)
    assert (lower.nbytes, lower.source, lower.times) == (4 * GIB, "table", 1)  # noise lowers nothing
    history = history.learn("k", SUBJECT, guess, load(2 * GIB))
    measured = history.estimate("k", guess, 8 * GIB)
    assert measured.source == "measured" and measured.times == 2 and measured.nbytes < 3 * GIB
    assert measured.last == load(2 * GIB)
    assert history.estimate("other", guess, 8 * GIB).source == "table"


def test_noise_alone_keeps_no_model_from_a_device_where_its_files_say_that_it_fits():
    guess = Start(4 * GIB)
    noisy = History().learn("k", SUBJECT, guess, load(12 * GIB, "noise"))
    assert noisy.estimate("k", guess, 8 * GIB).nbytes == 8 * GIB
    clean = noisy.learn("k", SUBJECT, guess, load(12 * GIB))
    assert clean.estimate("k", guess, 8 * GIB).nbytes > 12 * GIB


def test_records_are_forgotten_by_stage_by_key_or_all_and_the_oldest_leave_when_there_are_many():
    history = History()
    for number in range(MODELS + 5):
        subject = msgspec.structs.replace(SUBJECT, stage=f"s{number % 3}")
        history = history.learn(f"k{number}", subject, Start(), load(MIB))
    assert len(history.models) == MODELS and "k0" not in history.models and f"k{MODELS + 4}" in history.models
    history = history.learn("k5", SUBJECT, Start(), load(MIB)).learn("new", SUBJECT, Start(), load(MIB))
    assert "k5" in history.models and "k6" not in history.models  # measured again, it is new
    left, forgotten = history.forget("s1")
    assert forgotten > 0 and all(one.subject.stage != "s1" for one in left.models.values())
    assert left.forget("new")[1] == 1 and left.forget("nobody")[1] == 0
    assert left.forget("all")[0].models == {}


def test_a_stage_is_forgotten_on_every_kind_of_device_or_on_the_one_that_is_named():
    history, guess = History(), Start(4 * GIB, GIB, "files")
    for device in ("cpu", "NVIDIA L4"):
        subject = msgspec.structs.replace(SUBJECT, device=device)
        history = history.learn(f"k@{device}", subject, guess, load(2 * GIB))
    for name in ("asr@NVIDIA L4", "k@NVIDIA L4"):
        left, forgotten = history.forget(name)
        assert forgotten == 1 and list(left.models) == ["k@cpu"]
    assert history.forget("asr")[1] == 2 and history.forget("k")[1] == 0


def test_rows_are_plain_and_say_what_the_next_start_asks_for():
    guess = Start(4 * GIB, GIB, "files")
    history = History().learn("k", SUBJECT, guess, load(2 * GIB))
    (row,) = corrections.rows(history)
    assert row["estimate_bytes"] == needed(guess, [load(2 * GIB)]) and row["stage"] == "asr" and row["loads"] == 1
    assert msgspec.json.decode(msgspec.json.encode(row)) == row


def test_an_exact_load_of_less_than_half_of_what_the_files_say_proves_nothing():
    guess = Start(4 * GIB, loaded_bytes=3 * GIB)
    for nbytes, asked in ((4096, 4 * GIB), (3 * GIB // 2 - 1, 4 * GIB), (2 * GIB, needed(guess, [load(2 * GIB)]))):
        history = History().learn("k", SUBJECT, guess, Sample("load", nbytes, 1.0, exact=True))
        assert history.estimate("k", guess, 8 * GIB).nbytes == asked


def test_an_exact_load_of_nothing_proves_nothing():
    """Some drivers list a process with 0 bytes."""
    guess = Start(4 * GIB)
    history = History().learn("k", SUBJECT, guess, Sample("load", 0, 1.0, exact=True))
    assert history.estimate("k", guess, 8 * GIB).nbytes == 4 * GIB


# ---------------------------------------------------------------- contexts


def guess(loaded: int, library: str = "ctranslate2") -> Start:
    return Start(450 * MIB + loaded, 0, "files", library, 450 * MIB, loaded)


def seen(*loads_of: tuple[int, Sample], subject: Subject = SUBJECT) -> History:
    """What is known after loads of models of so many bytes."""
    history = History()
    for number, (loaded, sample) in enumerate(loads_of):
        history = history.learn(f"k{number}", subject, guess(loaded), sample)
    return history


def test_what_a_load_took_besides_its_model_counts_for_the_next_model_of_that_library_and_device():
    history = seen((GIB, load(GIB + 300 * MIB)))
    first = history.first(guess(2 * GIB), "NVIDIA L4")
    context = int(300 * (1 + CONTEXT_ALLOWANCE)) * MIB
    assert (first.nbytes, first.context_bytes, first.loaded_bytes) == (2 * GIB + context, context, 2 * GIB)
    assert history.first(guess(2 * GIB), "NVIDIA T4") == guess(2 * GIB)
    assert history.first(guess(2 * GIB, "llama_cpp"), "NVIDIA L4") == guess(2 * GIB, "llama_cpp")
    raised = seen((GIB, load(GIB + 900 * MIB))).first(guess(2 * GIB), "NVIDIA L4")
    assert raised.nbytes > guess(2 * GIB).nbytes, "up as well as down"


def test_of_contexts_the_highest_of_the_newest_counts_and_forgetting_all_forgets_them():
    history = seen(*[(GIB, load(GIB + size * MIB)) for size in (900, 300, 500, 400)])
    (row,) = corrections.context_rows(history)
    assert row == {
        "library": "ctranslate2", "device": "NVIDIA L4", "nbytes": (300 * MIB, 500 * MIB, 400 * MIB), "loads": 4
    }  # fmt: skip
    assert history.first(guess(0), "NVIDIA L4").context_bytes == 600 * MIB
    assert history.forget("asr")[0].contexts and not history.forget("all")[0].contexts


def test_a_load_with_its_workspace_tells_no_context():
    first = guess(GIB)
    history = History().learn("k", SUBJECT, first, load(GIB + 300 * MIB))
    history = history.learn("k", SUBJECT, first, load(GIB + 900 * MIB))
    assert history.first(guess(GIB), "NVIDIA L4").context_bytes == int(300 * (1 + CONTEXT_ALLOWANCE)) * MIB


@pytest.mark.parametrize(
    ("loaded", "sample"),
    [
        (GIB, load(GIB + 300 * MIB, "a neighbour ran")),
        (GIB, load(GIB + 300 * MIB, exact=False)),  # a difference, others' memory may be in it
        (GIB, run(GIB + 300 * MIB)),
        (0, load(300 * MIB)),  # its files say nothing
        (GIB, load(GIB)),
        (GIB, load(GIB // 2)),  # they say too much
        (GIB, load(4 * GIB)),  # or too little
        (2 * GIB, load(2 * GIB + 300 * MIB)),  # a few hundredths of it, more or less, would be the context
    ],
)
def test_what_tells_no_context_is_none(loaded: int, sample: Sample) -> None:
    assert seen((loaded, sample)).contexts == {}


def test_on_the_cpu_there_is_no_context():
    assert seen((GIB, load(GIB + 300 * MIB)), subject=msgspec.structs.replace(SUBJECT, device="cpu")).contexts == {}
