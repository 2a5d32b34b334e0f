"""The training loop that all four models share, and batches of examples of like length."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

T = TypeVar("T")


@dataclass(frozen=True)
class Descent:
    """How far and how fast: steps; the highest learning rate, and the share of the steps in which it is reached."""

    steps: int
    rate: float
    warm_up: float = 0.1
    weight_decay: float = 0.01


def descend(net: nn.Module, plan: Descent, loss_of: Callable[[float], Tensor], what: str) -> None:
    """AdamW under a one-cycle schedule. ``loss_of`` gets the share of the steps already done.

    Vectors (biases, norms) do not decay. The gradient is cut to length 1.
    """
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.rate, plan.steps, pct_start=plan.warm_up, final_div_factor=100
    )
    net.train()
    shown = tqdm(range(plan.steps), desc=what, unit="step", file=sys.stderr)
    mean = 0.0
    for step in shown:
        loss = loss_of(step / plan.steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = 0.98 * mean + 0.02 * loss.item() if step else loss.item()
        shown.set_postfix(loss=f"{mean:.3f}", refresh=False)
    net.eval()


GROUP = 8  # batches made at once, to put examples of like length together


def grouped(
    example: Callable[[], T], length: Callable[[T], int], size: int, chance: random.Random
) -> Iterator[list[T]]:
    """Batches of ``size`` new examples without end, those of like length together."""
    while True:
        examples = sorted((example() for _ in range(GROUP * size)), key=length)
        batches = [examples[at : at + size] for at in range(0, len(examples), size)]
        chance.shuffle(batches)
        yield from batches


def padded(rows: Any, filling: int) -> Tensor:
    """Lists of numbers as one int64 tensor (rows, longest)."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows])
