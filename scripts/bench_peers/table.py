"""From processes to rows: medians, noise, the share of the machine's ceiling, and the verdict."""

import platform
import statistics
import subprocess
import time
from pathlib import Path

# Share of the machine that others may take in a process that counts, as in `ctscribe bench` and the peers' scripts.
QUIET = 0.12


class Measured:
    """One row's processes, of both sides."""

    def __init__(self, row, wanted):
        self.row, self.wanted = row, wanted
        self.ours, self.peer, self.missing = [], [], {}

    def sides(self):
        return [self.ours, self.peer] if self.row.peer else [self.ours]

    def noisy(self):
        """Whether a side that runs at all has too few quiet runs."""
        return any(processes and len(quiet_runs(processes)) < self.wanted for processes in self.sides())

    def ratio(self):
        return seconds(self.peer) / seconds(self.ours) if self.ours and self.peer else None

    def memory_ratio(self):
        ours, peer = peak(self.ours), peak(self.peer)
        return ours / peer if ours and peer else None

    def faults(self, places):
        """What of the target was not reached, in words."""
        row, faults = self.row, []
        if row.speed and self.ratio() < row.speed:
            faults.append("speed")
        if row.most_s and seconds(self.ours) > row.most_s:
            faults.append("time")
        if row.memory and self.memory_ratio() > row.memory or row.file_memory and self.file_ratio(places) > row.file_memory:
            faults.append("memory")
        return faults

    def file_ratio(self, places):
        file = sum(path.stat().st_size for path in (places.models / self.row.weights).iterdir() if path.suffix in (".safetensors", ".gguf"))
        return peak(self.ours) * 2**20 / file

    def verdict(self, places):
        if self.missing:
            return "skipped: " + "; ".join(f"{side}: {why}" for side, why in self.missing.items())
        if self.noisy():
            return f"noisy: others took {' / '.join(f'{others(side):.0%}' for side in self.sides())}"
        faults = self.faults(places)
        return "missed: " + ", ".join(faults) if faults else "met"


def quiet_runs(processes):
    """
    >>> from sides import Process
    >>> quiet_runs([Process([1.0, 2.0], 0.05, 1, {}), Process([9.0], 0.5, 1, {})])
    [1.0, 2.0]
    """
    return [run for process in processes if process.others < QUIET for run in process.seconds]


def seconds(processes):
    """Median of the quiet processes' runs, of all where none was quiet.

    >>> from sides import Process
    >>> seconds([Process([1.0, 2.0, 4.0], 0.05, 1, {}), Process([9.0, 9.0, 9.0, 9.0], 0.5, 1, {})])
    2.0
    >>> seconds([Process([9.0], 0.5, 1, {})])
    9.0
    """
    return statistics.median(quiet_runs(processes) or [run for process in processes for run in process.seconds])


def others(processes):
    return statistics.mean(process.others for process in processes)


def peak(processes):
    return max((process.peak_mib for process in processes if process.peak_mib), default=None)


def share(measured, ceilings):
    """Least time that the machine's ceiling allows over the time taken: ours / the peer's."""
    line = measured.peer[-1].line if measured.peer else {}
    floor = measured.row.floor(ceilings, line) if measured.row.floor and ceilings else None
    return " / ".join(f"{floor / seconds(side):.0%}" for side in measured.sides() if side) if floor else ""


def duration(processes, tokens):
    if not processes:
        return ""
    time_taken = seconds(processes)
    text = f"{time_taken:.1f} s" if time_taken >= 100 else f"{time_taken:.3g} s"
    return f"{text} ({tokens / time_taken:.3g} tok/s)" if tokens else text


def times(ratio):
    return f"{ratio:.2f}x" if ratio else ""


def memory(measured, places):
    peaks = " / ".join(f"{peak(side):.0f}" for side in measured.sides() if peak(side))
    ratios = [times(measured.memory_ratio())] if measured.memory_ratio() else []
    if measured.row.file_memory and measured.ours:
        ratios.append(f"{measured.file_ratio(places):.2f}x the file")
    return f"{peaks} ({', '.join(ratios)})" if ratios else peaks


def cells(measured, places, ceilings):
    row = measured.row
    return [row.work, duration(measured.ours, row.tokens), duration(measured.peer, row.tokens), times(measured.ratio()), row.target,
            share(measured, ceilings), memory(measured, places), measured.verdict(places)]


def processor():
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def print_table(table, places, ceilings):
    version = subprocess.run([places.ctscribe, "--version"], capture_output=True, text=True).stdout.strip()
    print(f"{version}, {places.threads} threads, {processor()}, {time.strftime('%Y-%m-%d')}")
    if ceilings:
        noise = f"; noisy: others took {ceilings['others']:.0%}" if ceilings["others"] >= QUIET else ""
        peaks = ceilings["hw_f32_gflops"], ceilings["hw_bf16_gflops"], ceilings["hw_read_GBps"]
        print("ceilings: f32 {:.0f} GFLOP/s, bf16 {:.0f} GFLOP/s, read {:.0f} GB/s".format(*peaks) + noise)
    print("\n| work | ours | peer | ratio | target | of the ceiling, ours / peer | peak MiB, ours / peer | |\n|---|---|---|---|---|---|---|---|")
    for measured in table:
        print(f"| {' | '.join(cells(measured, places, ceilings))} |")
