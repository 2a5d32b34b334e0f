"""``translate``: sound or text files through a node, results in a folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.commands import FAILED, INTERRUPTED, OK, complaints, fitting, inputs, nodes
from engine.commands.delivery import Delivery, Wish
from engine.commands.inputs import UsageError, Utterance
from engine.commands.progress import Bar
from engine.commands.reading import ReadAhead
from engine.commands.results import Results, Row, all_ok, summary
from engine.commands.tables import cell, shorten, table
from engine.config import Config
from engine.outcome import Rejected

WRONGLY_ASKED = frozenset({"bad_language", "bad_model", "bad_pipeline"})  # by the command line
LINE_COLUMNS = 48  # of each part of a result's line
EXAMPLES = """examples:
  run_node.py translate talk.mp3 --out OUT --source en --target de
  run_node.py translate recordings/ --out OUT --sessions 3
  run_node.py translate talk.mp3 --out OUT --pipeline transcribe
  run_node.py translate lines.txt --out OUT --pipeline translate-text --target es
  run_node.py translate lines.txt --out OUT --pipeline speak --source de

One sound file is one utterance, a .txt file is one utterance a line; folders give their files. Files are dealt out to
the sessions in turn. OUT gets NNN_name.wav for each spoken result, results.jsonl (one object per outcome, as they
come; tag: s0, s1, ..., the session it was dealt to; session: what the node calls that) and timeline.json (open it in
chrome://tracing or ui.perfetto.dev). What an earlier run left in OUT is replaced once this one's sessions are open.

exit codes: 0 every utterance ok, 1 not every one, or no node, 2 usage, 78 configuration, 130 interrupted"""


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "translate",
        help="translate sound or text files",
        description="Translate files with the running node, or with a private one when none runs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="sound of any codec, .txt files, or folders of them")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--source", metavar="LANG", help="language spoken or written (default: en)")
    parser.add_argument("--target", metavar="LANG", help="language wanted (default: de; speak has but one language)")
    parser.add_argument("--pipeline", metavar="NAME", help="full | transcribe | translate-text | speak, or one of the "
                        "configuration's (default: full; translate-text when all inputs are .txt)")  # fmt: skip
    parser.add_argument("--sessions", type=_count, default=1, metavar="N", help="speakers at once (default: 1)")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="STAGE", help="leave a stage out; may be repeated"
    )
    parser.add_argument(
        "--model", type=_choice, action="append", default=[], metavar="STAGE=NAME",
        help="which of a stage's models, where it has several (default: the first that knows the languages); may be "
             "repeated",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=_seconds, metavar="S", help="seconds each utterance may take (default: the node's)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no tables")
    nodes.add_node(parser)


def run(args: argparse.Namespace) -> int:
    models = chosen_models(args.model)
    pipeline = args.pipeline or ("translate-text" if inputs.all_text(args.inputs) else "full")
    say = speaker(args.json or args.quiet)
    results = Results(Path(args.out))
    with ExitStack() as stack:
        # What can be wrong without a node is found before one is started, and reading begins before it is ready.
        inputs.check_there(args.inputs)
        planned = _plan(args, pipeline, None) if pipeline in nodes.STANDARD_PIPELINES else None
        results.check()
        stack.callback(results.close)
        read = stack.enter_context(ReadAhead(planned.work)) if planned else None
        client = stack.enter_context(
            nodes.client(args, say, lambda config: _check(args, pipeline, models, config, read))
        )
        limits = client.limits
        fitting.check(limits["pipelines"], pipeline, args.skip)
        fitting.check_models(limits.get("choices", {}), limits["pipelines"][pipeline], models)
        spoken, hears = languages(pipeline, args.source, args.target), nodes.takes(pipeline, limits) == "audio"
        fitting.check_languages(
            limits["sources"].get(pipeline, ()), limits["targets"].get(pipeline, ()), *spoken, hears
        )
        planned = planned or _plan(args, pipeline, limits)
        read = read or stack.enter_context(ReadAhead(planned.work))
        _check_sound(read)
        wanted = wish(args, pipeline, models, planned.sessions, limits)
        shown = not (args.json or args.quiet)
        try:
            delivery = deliver(
                client, wanted, results, read, len(planned.work), say, shown=shown, told=line if shown else None
            )
        except Rejected as error:  # of its sessions, before anything was translated
            if error.code not in WRONGLY_ASKED:
                raise
            raise UsageError(error.text.removeprefix(f"{error.code}: "), error.mend) from error
    report(results, args.json, args.quiet)
    return exit_code(delivery.interrupted, results)


def _check(
    args: argparse.Namespace, pipeline: str, models: Mapping[str, str], config: Config, read: ReadAhead | None
) -> None:
    """Raise UsageError for what a private node would be started for in vain."""
    fitting.check_with(config, pipeline, args.skip, models, *languages(pipeline, args.source, args.target))
    if read is not None:
        _check_sound(read)


def _check_sound(read: ReadAhead) -> None:
    """Raise UsageError when not one file can be read; where one can, the others get their rows."""
    if bad := read.nothing_but_errors():
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UsageError(f"nothing can be translated: {bad[0].text}{more}", bad[0].mend or "give a sound file")


@dataclass(frozen=True)
class Planned:
    """What is to be done: every utterance, and in how many sessions."""

    work: list[Utterance]
    sessions: int


def _plan(args: argparse.Namespace, pipeline: str, limits: Any) -> Planned:
    files = inputs.expand(args.inputs, takes_text=nodes.takes(pipeline, limits) == "text")
    sessions = min(args.sessions, len(files))
    work = list(inputs.utterances(files, sessions))
    if not work:
        raise UsageError(f"there is no line of text in {', '.join(args.inputs)}", "give a file that says something")
    return Planned(work, sessions)


def wish(
    args: argparse.Namespace, pipeline: str, models: Mapping[str, str], sessions: int, limits: Mapping[str, Any]
) -> Wish:
    """What every session and utterance of this command is opened and submitted with."""
    return Wish(
        sessions=sessions,
        pipeline=pipeline,
        languages=(languages(pipeline, args.source, args.target),),
        skip=tuple(args.skip),
        models=models,
        budget_s=args.budget,
        max_utterance_s=float(limits["max_utterance_s"]),
    )


def languages(pipeline: str, source: str | None, target: str | None) -> tuple[str, str]:
    """Source and target of the sessions; a pipeline without translation has one language, "" being the target."""
    if pipeline == "speak":
        return target or source or "en", ""
    return source or "en", "" if pipeline == "transcribe" else target or "de"


def deliver(client: Any, wish: Wish, results: Results, work: ReadAhead, total: int, say: Callable[[str], None],
            *, shown: bool, heard: bool = False, told: Callable[[Row], str] | None = None) -> Delivery:  # fmt: skip
    """Carry ``work`` through, with a progress bar when ``shown``; the delivery that did it.

    ``told``: makes the line to print of each row as it comes.
    """
    with Bar(total, shown and sys.stderr.isatty()) as bar:

        def ended(row: Row, outcome: Any) -> None:
            bar.ended(row, outcome)
            if told and row["outcome"] == "ok":
                bar.print(told(row))

        delivery = Delivery(client, wish, results, told=ended, say=bar.say if shown else say,
                            heard=bar.heard if heard else None)  # fmt: skip
        delivery.run(work)
    if left := total - len(results.rows):
        say(f"interrupted: {left} of {total} were not submitted")
    return delivery


def line(row: Row) -> str:
    """A result in one line: what it was made from, what was heard, what became of it."""
    said = row["source_text"] if row["source_text"] is not None else row["transcript"] or "(nothing)"
    parts = [said, row["translation"], row["audio"]]
    return f"{row['input']}: {' → '.join(shorten(part, LINE_COLUMNS) for part in parts if part)}"


def report(results: Results, as_json: bool, quiet: bool) -> None:
    """What the run came to: one JSON object, or tables."""
    figures = summary(results.rows, results.chart())
    if as_json:
        ok = all_ok(results.rows)
        print(
            json.dumps(
                {"ok": ok, "out": str(results.folder), **figures, "results": results.rows},
                ensure_ascii=not (sys.stdout.encoding or "").lower().startswith("utf"),
            )
        )
        return
    for complaint in complaints.lines(results.rows):
        print(complaint, file=sys.stderr)
    if lost := complaints.gone(results.rows, results.folder):
        print(lost, file=sys.stderr)
    if not quiet:
        print(stage_table(figures))
        without = complaints.left_out(results.rows)
        print("\n" + "\n".join(text for text in (totals(figures), without, f"results in {results.folder}") if text))


def stage_table(figures: Mapping[str, Any]) -> str:
    """A row per stage: attempts, how they ended, mean times."""
    rows = [
        [s["stage"], s["attempts"], ", ".join(f"{n} {state}" for state, n in s["states"].items()),
         s["waiting_ms"], s["processing_ms"]]
        for s in figures["stages"]
    ]  # fmt: skip
    return table(["stage", "attempts", "states", "mean wait ms", "mean work ms"], rows)


def totals(figures: Mapping[str, Any]) -> str:
    """One line: how the utterances ended and how much ran at once."""
    ends = ", ".join(f"{n} {outcome}" for outcome, n in figures["outcomes"].items() if n) or "nothing"
    if not figures["makespan_s"]:
        return ends
    return (
        f"{ends}; {cell(figures['makespan_s'])} s from the first run's begin to the last one's end, "
        f"{figures['overlap_share']:.0%} of it with two or more workers busy"
    )


def exit_code(interrupted: bool, results: Results) -> int:
    if interrupted:
        return INTERRUPTED
    return OK if all_ok(results.rows) else FAILED


def speaker(silent: bool) -> Callable[[str], None]:
    """Where lines for the user go while the work is under way: standard error, or nowhere."""
    return (lambda line: None) if silent else (lambda line: print(line, file=sys.stderr, flush=True))


def chosen_models(choices: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Stage -> the model chosen. Raises UsageError for a stage that is given two."""
    models: dict[str, str] = {}
    for stage, name in choices:
        if models.setdefault(stage, name) != name:
            text = f"--model chooses both {stage}={models[stage]} and {stage}={name}"
            raise UsageError(text, "a run has one model of each stage; translate twice for two")
    return models


def _choice(text: str) -> tuple[str, str]:
    stage, equals, name = text.partition("=")
    if not (stage and equals and name):
        raise argparse.ArgumentTypeError(f"{text!r} chooses no model: write STAGE=NAME, as tts=de")
    return stage, name


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of sessions (1 to 1024)")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds
