"""Losses of two runs of the same training, on two devices."""

import json
import math
from pathlib import Path

STAGES = ("language", "structure", "llama", "bert")
# Their first step is a forward pass of the same weights on the same data on both devices; the report stages begin with what each run has trained.
FROM_EQUAL_WEIGHTS = ("language", "structure")
# The house's tolerance of a whole model in f32, whose sums the devices take in other orders.
FIRST = 1e-4
# Roundings grow with every optimiser step (Adam divides by the gradient's own size). On the CPU, half the micro-batch, which groups the gradients'
# sums otherwise, moved losses of the quick demo by at most 3e-6 (language, 40 steps), 7e-6 (llama, 60) and 7e-8 (bert, 60) of their size. A device
# takes every sum in another order, and a patch may be selected in place of its equal: a thousand times as much is let pass. There was no GPU to
# measure it on.
LATER = 0.01


def read(run, stage):
    """(training losses by step, the last validation loss or None) of a run's stage."""
    path = Path(run) / stage / "metrics.jsonl"
    if not path.is_file():
        return {}, None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return losses, next((line["validation_loss"] for line in reversed(lines) if "validation_loss" in line), None)


def difference(one, other):
    """As a share of the reference `other`, at least of 0.1; a loss that is no number differs by infinity.

    >>> difference(2.2, 2.0)
    0.10000000000000009
    >>> difference(float("nan"), 2.0)
    inf
    """
    return abs(one - other) / max(0.1, abs(other)) if math.isfinite(one) and math.isfinite(other) else math.inf


def rows(device_run, cpu_run):
    """Each stage's first loss, mean of the last half, and validation loss on both devices, with the tolerance and whether it is kept."""
    table = []
    for stage in STAGES:
        (ours, ours_validation), (reference, reference_validation) = read(device_run, stage), read(cpu_run, stage)
        steps = sorted(reference)
        if not steps or sorted(ours) != steps or (ours_validation is None) != (reference_validation is None):
            table.append({"stage": stage, "what": "steps", "device": len(ours), "cpu": len(reference), "agrees": False})
            continue
        half = steps[len(steps) // 2:]
        mean = lambda losses: sum(losses[step] for step in half) / len(half)
        first = FIRST if stage in FROM_EQUAL_WEIGHTS and steps[0] == 1 else LATER
        compared = [(f"step {steps[0]}", ours[steps[0]], reference[steps[0]], first),
                    (f"mean of steps {half[0]} to {half[-1]}", mean(ours), mean(reference), LATER)]
        if reference_validation is not None:
            compared.append(("validation", ours_validation, reference_validation, LATER))
        for what, one, other, tolerance in compared:
            off = difference(one, other)
            row = {"stage": stage, "what": what, "device": one, "cpu": other}
            table.append(row | {"difference": off, "tolerance": tolerance, "agrees": off <= tolerance})
    return table
