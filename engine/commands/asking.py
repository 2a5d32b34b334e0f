"""Asking a running node from the command line: what goes wrong is one line with what to do."""

from __future__ import annotations

from typing import Any

import msgspec
import zmq

from engine import ctl
from ipc.errors import DragomanError

START_ONE = "start one with: python run_node.py serve"


class NoNode(DragomanError):
    """There is no node to ask, or what answers is none."""


def ask(endpoint: str, verb: str, timeout_s: float = ctl.TIMEOUT_S, **args: str) -> dict[str, Any]:
    """The data of the node's answer. Raises DragomanError."""
    try:
        return ctl.ask(endpoint, verb, timeout_s=timeout_s, **args)
    except zmq.ZMQError as error:
        raise NoNode(
            f"{endpoint!r} is not an address: {error}", "give the operators' address that serve prints"
        ) from error
    except msgspec.MsgspecError as error:
        raise NoNode(f"what answers at {endpoint} is not a node's operators' socket", START_ONE) from error
