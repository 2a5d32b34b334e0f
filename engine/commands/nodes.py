"""Which node does the work: the one named, the one that runs, or a private one that lives as long as the command."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine.commands import choosing, finding
from engine.commands.inputs import UsageError
from engine.config import Config
from engine.loading import wait_for_all

LOOK_S = 0.5
STANDARD_PIPELINES = {"full": "audio", "transcribe": "audio", "translate-text": "text", "speak": "text"}


def add_node(parser: argparse.ArgumentParser) -> None:
    """The options that choose a node."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--connect", metavar="ENDPOINT", help="use the node at this client endpoint")
    which.add_argument("--private", action="store_true", help="start a node for this command alone, even if one runs "
                       "(so does --config)")  # fmt: skip
    choosing.add_config(parser, " of a private node, which is started even if one runs")


@contextmanager
def client(
    args: argparse.Namespace, say: Callable[[str], None], check: Callable[[Config], None] = lambda config: None
) -> Iterator[Any]:
    """A client of the node chosen; ``say`` hears which one it is. Raises DragomanError when there is none.

    ``check`` may refuse a private node's configuration before that node is started.
    """
    from engine import embedded
    from engine.client import Client

    if args.connect and args.config:
        raise UsageError("--connect uses a node that runs, and --config is for a private one", "give one of them")
    endpoint = args.connect or (None if args.private or args.config else running(say))
    if endpoint:
        say(f"using the {'node' if args.connect else 'running node'} at {endpoint}")
        with Client(endpoint) as found:
            if any(map(embedded.is_demo, found.limits.get("models", {}).values())):
                say("its models are demo models: a phrase book, synthetic voices, not for use")
            yield found
        return
    config, words = choosing.config(args)
    check(config)
    say(words)
    with choosing.named(args), private(config, say) as found:
        yield found


def running(say: Callable[[str], None]) -> str | None:
    """Where clients reach the running node; None without one. A node that starts is waited for, for as long as it does.

    One that does not let itself be found (another command's private one) counts for none.
    """
    pause, told = threading.Event(), ""
    while (found := finding.client_endpoint()) is None and (home := finding.starting()):
        how_far = finding.how_far(home)
        line = f"waiting for the node that is starting ({home.name}; --private starts another): {how_far}"
        if how_far and line != told:
            say(line)
            told = line
        pause.wait(LOOK_S)
    return found or finding.client_endpoint()


@contextmanager
def private(config: Config, say: Callable[[str], None]) -> Iterator[Any]:
    """A client of a node of this command's own; the node is stopped at the end."""
    from engine.node import Node

    say("starting a private node")
    with Node(config, news=say) as node, node.client() as found:
        wait_for_all(node.stats)
        yield found


def takes(pipeline: str, limits: Any) -> str:
    """What a pipeline's utterances are: "text" or "audio"; by the standard names, else by its first stage's name."""
    if pipeline in STANDARD_PIPELINES:
        return STANDARD_PIPELINES[pipeline]
    stages = (limits or {}).get("pipelines", {}).get(pipeline, ())
    return "text" if stages and stages[0] in ("repair", "nmt", "tts") else "audio"
