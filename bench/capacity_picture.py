"""A simulated day in words and as a table of its stages. Pure."""

from __future__ import annotations

from bench.capacity_day import Day
from bench.capacity_figures import MOST_WAITING_S, Figures

BAR = 20  # cells of a bar
LIMITING = 0.8  # of the time: a stage that is busy less limits nobody yet, as long as nobody waits too long


def scene(day: Day) -> str:
    """What was simulated, in a line."""
    return (
        f"{day.gpus} GPUs, {day.sessions} sessions that speak {day.rate:.3g} utterances a second in all (pauses of "
        f"{day.mean_pause_s:.3g} s), {day.hours:g} h, batches of {day.batch}: load {100 * day.offered:.0f} %"
    )


def bottleneck(day: Day, figures: Figures) -> str:
    """Which stage limits the node, or would first, in a sentence."""
    name = figures.bottleneck
    stage = figures.stages[name]
    limits = stage.utilisation >= LIMITING or figures.waiting_s(99) > MOST_WAITING_S
    what = "The bottleneck is" if limits else "No stage is a bottleneck yet; the busiest is"
    workers = f"{day.gpus} workers are" if day.gpus > 1 else "worker is"
    return (
        f"{what} {name}: its {workers} busy {100 * stage.utilisation:.0f} % of the time, with "
        f"{stage.batch:.1f} of at most {day.batch} utterances in a run, and can do {stage.rate:.3g} a second."
    )


def stages(figures: Figures) -> str:
    """A table, one stage a line."""
    rows = [f"{'stage':8} {'busy':{BAR + 5}}  {'a run has':>9}  {'waits':>7}  {'at most':>8}"]
    for name, stage in figures.stages.items():
        cells = round(BAR * min(1.0, stage.utilisation))
        bar = "█" * cells + "·" * (BAR - cells)
        rows.append(
            f"{name:8} {bar} {100 * stage.utilisation:3.0f}%  {stage.batch:9.2f}  {stage.waiting_s:5.2f} s"
            f"  {stage.rate:5.2f} /s"
        )
    return "\n".join(rows)
