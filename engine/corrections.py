"""What models really took, kept from one node's life to the next, and what is asked for because of it. Pure.

An estimate begins as a guess from files (``engine.estimates``), on a GPU with a factor for what nobody has measured
there. Then the node measures, and says how well:

* a **load**, *clean*: what the model had taken once it was loaded and warm, and nothing else was seen to move. *Exact*
  when it was read of its process alone; else it is the difference of two readings of the whole device, in which another
  program's change may hide. It is *proven* when it is exact, or when an earlier clean one has come to the same. The
  highest of the newest ``RECENT`` proven ones, with ``ALLOWANCE``, replaces guess and factor. What comes later (the
  workspace of the longest inputs) keeps its guess on top, since a load shows nothing of it. But a model that was waited
  for runs as soon as it has loaded, and what is read then has some of the workspace in it. So where the lowest proven
  load lacks no more of the highest than what comes later, the lowest is the load, and the highest a peak.
* any other load: it may be too high or too low, so it can only raise, until a proven one has followed.
* a **run**: the most a model has held since. It only ever raises: one that was never put to its longest input proves
  nothing about it. Exact ones get the allowance. Others do not, for they are what the book put down to a lease and so
  reach up to its grant: with the allowance they would climb from start to start.

What a load took beyond what its model's files say is the library's: its **context** and kernels. Of an exact load on a
GPU that is kept by library and kind of device, and counts for models that nobody has measured there yet: with
``CONTEXT_ALLOWANCE``, since what files say is not exact. Of a model much larger than a context it tells nothing.

Memory follows from a model's sizes, number format, batch and options, and from the device's kind; so that is what a
record is about (``engine.supervisor.needs`` makes its key). Sizes in bytes, times in seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from engine.estimates import Start, whole

VERSION = 1  # of the history's format
ALLOWANCE = 0.05  # on what was measured: two loads of one model are not the same to the byte
LEAST_LOADED = 0.5  # of what the files say of it is there when a model has loaded
RECENT = 3  # clean loads that count
MOST_BYTES = 2**50  # a larger measurement is none
SHOWN = 10  # newest loads that are kept to be looked at
MODELS = 200  # newest records that are kept
CONTEXT_ALLOWANCE = 0.2
CONTEXTS = 2**26, 2**31  # bytes: the least and the most that is believed to be one
MODEL_PER_CONTEXT = 4  # of a larger model an error of the files' could pass for the context

Source = Literal["configured", "measured", "files", "table"]


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measurement. ``note``: why it is not clean."""

    phase: Literal["load", "run"]
    nbytes: Annotated[int, msgspec.Meta(ge=0, le=MOST_BYTES)]
    at: float
    exact: bool = False
    note: str = ""
    asked: int = 0  # what its lease was granted
    proven: bool = False

    @property
    def clean(self) -> bool:
        return not self.note

    def confirms(self, other: Sample) -> bool:
        """Whether both are clean loads that came to the same."""
        alike = abs(self.nbytes - other.nbytes) <= ALLOWANCE * max(self.nbytes, other.nbytes)
        return alike and all(one.phase == "load" and one.clean for one in (self, other))


class Subject(msgspec.Struct, frozen=True):
    """Whose memory it is, for people."""

    stage: str
    kind: str
    model: str
    device: str  # "cpu", "NVIDIA L4"
    compute_type: str
    max_batch: int

    @property
    def names(self) -> tuple[str, str]:
        """What people call it: its stage, on any kind of device or on this one."""
        return self.stage, f"{self.stage}@{self.device}"


class Record(msgspec.Struct, frozen=True):
    """All that is known of one model on one kind of device, under one set of options."""

    subject: Subject
    guess: Start  # as the files said it when it was last measured
    loads: int = 0  # measured in all
    samples: tuple[Sample, ...] = ()  # oldest first; no more than matter and are looked at

    @property
    def last(self) -> Sample | None:
        """The newest measurement of a load; None: there is none."""
        return next((one for one in reversed(self.samples) if one.phase == "load"), None)


class Context(msgspec.Struct, frozen=True):
    """What one library takes on one kind of device besides its models. ``nbytes``: the newest, oldest first."""

    library: str
    device: str
    nbytes: tuple[Annotated[int, msgspec.Meta(ge=0, le=MOST_BYTES)], ...]
    loads: int  # measured in all


class Estimate(msgspec.Struct, frozen=True):
    """What is asked for, and why: ``times`` loads were measured."""

    nbytes: int
    source: Source
    times: int = 0
    last: Sample | None = None


class History(msgspec.Struct, frozen=True):
    """Everything measured. ``models``: key -> record, the one last measured last."""

    version: int = VERSION
    models: dict[str, Record] = {}
    contexts: dict[str, Context] = {}  # "library@device"

    def learn(self, key: str, subject: Subject, guess: Start, sample: Sample) -> History:
        """This history with one more measurement."""
        before = self.models.get(key, Record(subject, guess))
        loads = before.loads + (sample.phase == "load")
        sample = judged(sample, before.samples, guess)
        samples = (*before.samples, sample)
        others = [(name, one) for name, one in self.models.items() if name != key][1 - MODELS :]
        models = dict([*others, (key, Record(subject, guess, loads, kept(samples)))])
        ran = sample.proven and sample.nbytes > with_allowance(min(one.nbytes for one in proven_loads(samples)))
        contexts = self.contexts if ran else self._with_context(guess, sample, subject.device)
        return History(self.version, models, contexts)

    def _with_context(self, guess: Start, sample: Sample, device: str) -> dict[str, Context]:
        nbytes, (least, most) = sample.nbytes - guess.loaded_bytes, CONTEXTS
        tells = sample.proven and sample.exact and 0 < guess.loaded_bytes <= MODEL_PER_CONTEXT * nbytes
        if device == "cpu" or not tells or not least <= nbytes <= most:
            return self.contexts
        key = f"{guess.library}@{device}"
        before = self.contexts.get(key, Context(guess.library, device, (), 0))
        newest = (*before.nbytes, nbytes)[-RECENT:]
        return {**self.contexts, key: Context(guess.library, device, newest, before.loads + 1)}

    def first(self, guess: Start, device: str) -> Start:
        """What to ask for a model that was never measured on this kind of device."""
        known = self.contexts.get(f"{guess.library}@{device}")
        if known is None:
            return guess
        nbytes = whole(max(known.nbytes) * (1 + CONTEXT_ALLOWANCE))
        return msgspec.structs.replace(
            guess, nbytes=whole(guess.nbytes - guess.context_bytes + nbytes), context_bytes=nbytes
        )

    def forget(self, name: str) -> tuple[History, int]:
        """Without the records of a name, and how many these were.

        ``name``: a stage ("asr"), one on a kind of device ("asr@cpu"), a record's key, or "all": contexts too.
        """
        models = {key: one for key, one in self.models.items() if name not in ("all", key, *one.subject.names)}
        contexts = {} if name == "all" else self.contexts
        return History(self.version, models, contexts), len(self.models) - len(models)

    def estimate(self, key: str, guess: Start, most_bytes: int) -> Estimate:
        """What to ask for. ``most_bytes``: the largest lease that its device ever grants.

        Noise alone keeps no model from a device where its files say that it fits.
        """
        record = self.models.get(key)
        if record is None or not record.samples:
            return Estimate(guess.nbytes, guess.source)
        nbytes, proven = needed(guess, record.samples), proven_loads(record.samples)
        if not proven and guess.nbytes <= most_bytes < nbytes:
            nbytes = most_bytes
        measured = bool(proven) or nbytes > guess.nbytes
        return Estimate(nbytes, "measured" if measured else guess.source, record.loads, record.last)


def judged(sample: Sample, before: Sequence[Sample], guess: Start) -> Sample:
    """This measurement with its verdict, after these.

    No load takes nothing, nor far less than its files say: a driver that lists it so is not believed.
    """
    proven = (
        sample.phase == "load"
        and sample.clean
        and not is_too_little(sample, guess)
        and (sample.exact or any(map(sample.confirms, before)))
    )
    return msgspec.structs.replace(sample, proven=proven)


def is_too_little(sample: Sample, guess: Start) -> bool:
    """Whether no model can have been there: it had left already, or the driver does not tell."""
    return sample.phase == "load" and (sample.nbytes <= 0 or sample.nbytes < LEAST_LOADED * guess.loaded_bytes)


def needed(guess: Start, samples: Sequence[Sample]) -> int:
    """Bytes to ask for after these measurements, oldest first. See the module's docstring."""
    if proven := proven_loads(samples):
        highest = max(one.nbytes for one in proven[-RECENT:])
        lowest = with_allowance(min(one.nbytes for one in proven)) + guess.later_bytes
        nbytes = max(lowest, with_allowance(highest))
        if lowest < highest:  # the lowest is no load of this model
            nbytes = with_allowance(highest) + guess.later_bytes
    else:
        nbytes = guess.nbytes
    raising = [one.nbytes + guess.later_bytes for one in unproven_since(samples)]
    raising += [with_allowance(one.nbytes) if one.exact else one.nbytes for one in samples if one.phase == "run"]
    return whole(max([nbytes, *raising]))


def kept(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Those of them that ``needed`` depends on, and the newest to be looked at."""
    loads = [one for one in samples if one.phase == "load"]
    runs = [one for one in samples if one.phase == "run"]
    proven = proven_loads(samples)
    matter = [*proven[-RECENT:], *loads[-SHOWN:]]
    matter += [min(proven, key=lambda one: one.nbytes)] if proven else []
    for several in (
        unproven_since(samples), [one for one in runs if one.exact], [one for one in runs if not one.exact],
    ):  # fmt: skip
        matter += [max(several, key=lambda one: one.nbytes)] if several else []
    return tuple(one for one in samples if any(one is other for other in matter))


def proven_loads(samples: Sequence[Sample]) -> list[Sample]:
    return [one for one in samples if one.proven]


def unproven_since(samples: Sequence[Sample]) -> list[Sample]:
    """Loads that no proven one has followed."""
    loads = [one for one in samples if one.phase == "load"]
    newest = max((number for number, one in enumerate(loads) if one.proven), default=-1)
    return loads[newest + 1 :]


def with_allowance(nbytes: int) -> int:
    return nbytes + int(nbytes * ALLOWANCE)


def rows(history: History) -> list[Mapping[str, object]]:
    """The history as plain values, a row for each record: what ``run_node.py estimates --json`` prints."""
    found: list[Mapping[str, object]] = []
    for key, record in sorted(history.models.items(), key=lambda one: (one[1].subject.stage, one[0])):
        last = record.last
        found.append({
            "key": key,
            **msgspec.to_builtins(record.subject),
            "guess_bytes": record.guess.nbytes,
            "guess_source": record.guess.source,
            "later_bytes": record.guess.later_bytes,
            "estimate_bytes": needed(record.guess, record.samples),
            "loads": record.loads,
            "last_measured_bytes": last.nbytes if last else -1,
            "last_measured_proven": last.proven if last else False,
            "samples": [
                {
                    "phase": one.phase, "nbytes": one.nbytes, "at": one.at, "asked": one.asked, "exact": one.exact,
                    "proven": one.proven, "note": one.note,
                }
                for one in record.samples
            ],
        })  # fmt: skip
    return found


def context_rows(history: History) -> list[Mapping[str, object]]:
    """Likewise, of each library and kind of device."""
    return [msgspec.to_builtins(one) for _, one in sorted(history.contexts.items())]
