"""Runs rows in turns, ours and the peer's, and prints the table. Called by scripts/bench-peers, which says what is needed."""

import argparse
import json
import math
import os
import shutil
import sys
from pathlib import Path

from ceilings import machine_ceilings
from rows import ROWS
from sides import Missing, Places
from table import Measured, print_table


def arguments():
    names = ", ".join(row.name for row in ROWS)
    parser = argparse.ArgumentParser(prog="bench-peers", description="ctscribe against its peers, in one table", epilog=f"Rows: {names}")
    setting = lambda option, variable, what, default=None: parser.add_argument(option, default=os.environ.get(variable, default), help=f"{what} ({variable})")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows; all but the largest if none is named")
    parser.add_argument("--runs", type=int, default=6, help="runs on the clock of each side")
    parser.add_argument("--rounds", type=int, default=3, help="turns in which they are taken")
    parser.add_argument("--retries", type=int, default=2, help="more turns for a row that was noisy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log", type=Path, default=Path("bench-peers.jsonl"), help="where every process's line goes")
    parser.add_argument("--list", action="store_true", help="print the rows' names and end")
    setting("--ctscribe", "CTSCRIBE", "the program")
    setting("--peers", "BENCH_PEERS", "the peers' scripts")
    setting("--python", "BENCH_PYTHON", "their Python")
    setting("--llama-bench", "BENCH_LLAMA", "llama.cpp's llama-bench", shutil.which("llama-bench"))
    setting("--ctclip", "CTCLIP_SRC", "CT-CLIP's transformer_maskgit")
    setting("--models", "BENCH_MODELS", "models and scans", str(Path.home() / ".cache/ctscribe-bench"))
    options = parser.parse_args()
    unknown = sorted(set(options.rows) - {row.name for row in ROWS})
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {names}")
    return options


def places_of(options):
    models = Path(options.models)
    models.mkdir(parents=True, exist_ok=True)
    return Places(options.ctscribe, Path(options.peers), options.python, options.llama_bench, options.ctclip, models, options.threads)


def measure(row, places, options, log):
    """Both sides in turns, as often as asked and, while one is noisy, a few times more."""
    wanted = 1 if row.once else options.runs
    rounds = min(options.rounds, wanted)
    measured = Measured(row, wanted)
    sides = [("ours", row.ours, measured.ours)] + ([("peer", row.peer, measured.peer)] if row.peer else [])
    for turn in range(rounds + options.retries):
        if turn >= rounds and not measured.noisy():
            break
        for name, side, processes in sides:
            if name in measured.missing:
                continue
            try:
                processes.append(side(places, math.ceil(wanted / rounds)))
            except Missing as missing:
                measured.missing[name] = str(missing)
                continue
            log.write(json.dumps({"row": row.name, "side": name, "turn": turn} | processes[-1].line) + "\n")
            log.flush()
    return measured


def main():
    options = arguments()
    if options.list:
        print("\n".join(row.name for row in ROWS))
        return
    places, table = places_of(options), []
    ceilings = machine_ceilings(places)
    chosen = [row for row in ROWS if row.name in options.rows or not (options.rows or row.by_name)]
    try:
        with options.log.open("a") as log:
            log.write(json.dumps({"ceilings": ceilings}) + "\n")
            for row in chosen:
                table.append(measure(row, places, options, log))
                print(f"{row.name}: {table[-1].verdict(places)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped: the table holds what was measured", file=sys.stderr)
    print_table(table, places, ceilings)


main()
