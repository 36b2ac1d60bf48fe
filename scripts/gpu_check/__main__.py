"""Runs the parts one after the other, each within its seconds, and writes gpu-check.json and gpu-check.md. Called by scripts/gpu-check."""

import argparse
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# the programs' two sides and random weights are bench-peers'
sys.path.append(str(HERE.parent / "bench_peers"))

import parts
import report
from running import Budget, Failed, Skipped

NAMES = tuple(parts.PARTS)


def arguments(given=None):
    described = "; ".join(f"{name} ({part.seconds} s): {part.what}" for name, part in parts.PARTS.items())
    parser = argparse.ArgumentParser(prog="gpu-check", description="What only a machine with an NVIDIA GPU can prove.", epilog=f"Parts: {described}")
    setting = lambda option, variable, what, default=None: parser.add_argument(
        option, default=os.environ.get(variable, default), help=f"{what} ({variable})")
    parser.add_argument("--device", default="cuda:0", help="cuda:N; cpu: the same code on the CPU with tiny shapes, which proves this script alone")
    parser.add_argument("--part", action="append", choices=NAMES, help="this part alone; may be given several times")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, few training steps, two layers of the 7B")
    parser.add_argument("--budget", type=float, default=590, help="seconds for everything")
    parser.add_argument("--seconds", action="append", default=[], metavar="PART=N", help="another limit for a part")
    parser.add_argument("--out", type=Path, default=Path("."), help="where gpu-check.json and gpu-check.md go")
    setting("--ctscribe", "CTSCRIBE", "the program, in place of a build")
    setting("--on-cuda", "ON_CUDA", "the test program on_cuda of ctscribe-ops, in place of a build")
    setting("--device-tests", "DEVICE_TESTS", "the test program device of ctscribe, in place of a build")
    setting("--attention-times", "ATTENTION_TIMES", "the example attention_times of ctscribe-ops, in place of a build")
    setting("--python", "BENCH_PYTHON", "a Python with torch, and for LoRA transformers and peft", sys.executable)
    setting("--models", "BENCH_MODELS", "where random weights are made, 14 GB for the 7B", str(Path.home() / ".cache/ctscribe-bench"))
    options = parser.parse_args(given)
    if options.device != "cpu" and not (options.device.startswith("cuda:") and options.device[5:].isdecimal()):
        parser.error(f"--device {options.device}: expected cuda:N or cpu")
    options.limits = {name: part.seconds for name, part in parts.PARTS.items()}
    for given in options.seconds:
        name, _, seconds = given.partition("=")
        if name not in NAMES or not seconds.isdecimal():
            parser.error(f"--seconds {given}: expected PART=N, PART one of {', '.join(NAMES)}")
        options.limits[name] = float(seconds)
    # what other parts run is found, or built, first
    wanted = set(options.part or NAMES)
    options.chosen = [name for name in NAMES if name in wanted or name == "build"]
    return options


def carry_out(name, check, budget):
    """One part's record: what it compared or measured, or why it could not."""
    record, start = {"part": name, "rows": [], "notes": []}, time.monotonic()
    try:
        limit = budget.of(name)
        record["budget_s"] = round(limit.seconds)
        record["result"] = parts.PARTS[name].carry_out(check, limit, record)
    except Skipped as why:
        record |= {"result": "not run", "why": str(why)}
    except Failed as why:
        record |= {"result": "failed", "why": str(why)}
    record["seconds"] = round(time.monotonic() - start, 1)
    return record


def main(given=None):
    options = arguments(given)
    budget, check, records = Budget(options.budget, options.limits), parts.Check(options), []
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.chosen:
        print(f"== gpu-check {name}", file=sys.stderr, flush=True)
        records.append(carry_out(name, check, budget))
        print(f"{name}: {records[-1]['result']}{': ' + records[-1]['why'] if 'why' in records[-1] else ''}", file=sys.stderr, flush=True)
        # after each part: what was measured stays if the machine goes
        report.write(options, check.machine, records)
    code = report.exit_code(records)
    print(f"gpu-check: {report.verdict(records)}; see {options.out / 'gpu-check.md'}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
