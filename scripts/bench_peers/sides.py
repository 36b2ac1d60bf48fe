"""The two sides: processes that are started, one at a time, and what they say of themselves."""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PAIRS = 3039


class Missing(Exception):
    """Something that a row needs is not on this machine, or does not run."""


@dataclass(frozen=True)
class Process:
    """What one process measured."""

    seconds: list  # of every run on the clock
    others: float  # share of the machine that others took meanwhile
    peak_mib: float | None
    line: dict  # as it was printed


@dataclass(frozen=True)
class Places:
    ctscribe: str
    peers: Path
    python: str | None
    llama_bench: str | None
    ctclip: str | None
    models: Path
    threads: int

    def environment(self):
        threads = str(self.threads)
        own = {"BENCH_THREADS": threads, "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "BENCH_MODELS": str(self.models)}
        return os.environ | own | ({"CTCLIP_SRC": self.ctclip} if self.ctclip else {})

    def run(self, command):
        """What `command` printed; raises Missing with what it complained of."""
        ended = subprocess.run(list(map(str, command)), env=self.environment(), capture_output=True, text=True)
        if ended.returncode:
            raise Missing(complaint(command, ended.returncode, ended.stderr))
        return ended.stdout

    def first_line(self, command):
        """The first measurement that `command` prints; what it would measure after that is not waited for."""
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(list(map(str, command)), env=self.environment(), stdout=subprocess.PIPE, stderr=errors, text=True)
            with child.stdout as printed:
                line = next((line for line in printed if line.startswith('{"bench"')), None)
                if line:
                    child.kill()
            child.wait()
            errors.seek(0)
            if not line:
                raise Missing(complaint(command, child.returncode, errors.read()))
        return json.loads(line)


def complaint(command, code, errors):
    """One line of what a command wrote before it failed: its error, else the last."""
    lines = errors.strip().splitlines() or ["without a word"]
    what = next((line for line in lines if line.startswith("error")), lines[-1])
    return f"{Path(command[0]).name} {Path(command[1]).name} ended with {code}: {what}"


# Our side.

WEIGHTS = {"tiny": ["llama-tiny"], "1b": ["llama-1b"], "7b2": ["llama2-7b", "--layers", "2"], "7b": ["llama2-7b"]}
FORMATS = {"bf16": "bf16", "f16": "f16", "f32": "f32", "q8": "Q8_0", "q4": "Q4_K_M"}


def our_weights(places, name):
    """The folder of random weights `name`, SHAPE-FORMAT, made where it is not there."""
    folder = places.models / name
    if not folder.is_dir():
        shape, kind = name.split("-")
        aside = places.models / f"{name}.incomplete"
        shutil.rmtree(aside, ignore_errors=True)
        places.run([places.ctscribe, "phantom", "--weights", *WEIGHTS[shape], "--format", FORMATS[kind], "--out", aside])
        aside.rename(folder)
    return folder


def bench(work, weights, *options):
    """`ctscribe bench WORK [WEIGHTS] OPTIONS`."""

    def ours(places, runs):
        base = [our_weights(places, weights)] if weights else []
        return bench_command(places, [work, *base, *options], runs)

    return ours


def bench_command(places, arguments, runs):
    line = json.loads(places.run([places.ctscribe, "bench", *arguments, "--runs", runs]))
    return Process(line["runs_s"], line["others"], line["peak_mib"], line)


def prepare(places, runs):
    return bench_command(places, ["prepare", phantom_scan(places)], runs)


def clocked(places, command):
    """A command that does not measure itself: seconds, peak memory and others' share from outside, start-up included."""
    before, start = busy_seconds(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(list(map(str, command)), env=places.environment(), stdout=output, stderr=output)
        _, status, usage = os.wait4(child.pid, 0)
        seconds, child.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read()
    if child.returncode:
        raise Missing(complaint(command, child.returncode, printed))
    others = max(0.0, (busy_seconds() - before - usage.ru_utime - usage.ru_stime) / (seconds * os.cpu_count()))
    return Process([seconds], others, usage.ru_maxrss / 1024, {"seconds": seconds, "others": others, "printed": printed})


def busy_seconds():
    """Processor time of the whole machine, stolen time aside."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(fields[at] for at in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")


def repeated(places, command, runs):
    processes = [clocked(places, command) for _ in range(runs)]
    return Process([run.seconds[0] for run in processes], statistics.mean(run.others for run in processes), max(run.peak_mib for run in processes),
                   {"runs": [run.line for run in processes]})


def evaluate(places, runs):
    pairs = places.models / f"pairs-{PAIRS}.csv"
    if not pairs.is_file():
        write = ("import csv, sys; from synth import reports; n = int(sys.argv[1]); out = csv.writer(open(sys.argv[2], 'w', newline=''));"
                 "out.writerow(['study', 'report', 'reference']); out.writerows(zip(range(n), reports(n, 2), reports(n, 1)))")
        aside = pairs.with_suffix(".incomplete")
        subprocess.run(["python3", "-c", write, str(PAIRS), str(aside)], env=os.environ | {"PYTHONPATH": str(peer_script(places, "synth.py").parent)}, check=True)
        aside.rename(pairs)
    return repeated(places, [places.ctscribe, "evaluate", "--pairs", pairs], runs)


def demo(places, runs):
    with tempfile.TemporaryDirectory() as folder:
        return repeated(places, [places.ctscribe, "demo", "--out", f"{folder}/demo"], runs)


# The peers' side.


def peer_script(places, name):
    path = places.peers / name
    if not path.is_file():
        raise Missing(f"the peers' {name} is not in {places.peers} (BENCH_PEERS)")
    return path


def run_script(places, name, *arguments):
    """What one of the peers' scripts prints first."""
    if not places.python:
        raise Missing("no Python for the peers (BENCH_PYTHON)")
    if name == "p3_ctvit.py" and not places.ctclip:
        raise Missing("no source of CT-CLIP (CTCLIP_SRC)")
    return places.first_line([places.python, peer_script(places, name), *arguments])


def script(name, *arguments, runs=None):
    """One of the peers' scripts; `runs` is its option for how many."""

    def peer(places, count):
        scan = ["--file", phantom_scan(places)] if name == "p4_preprocess.py" else []
        line = run_script(places, name, *arguments, *scan, *([runs, count] if runs else []))
        return Process(line["runs"], line["others_mean"], line["peak_rss_mb"], line)

    return peer


def phantom_scan(places):
    """The scan that the peer's preparation makes at its first run."""
    scan = places.models / "phantom.nii.gz"
    if not scan.is_file():
        run_script(places, "p4_preprocess.py", "--file", scan, "--runs", "1", "--extra", "0")
    return scan


def gguf(places, name):
    """The very file that we read; bf16, which we write as safetensors, from the peers' script: the same shape, other numbers."""
    if name != "bf16":
        return next(our_weights(places, f"1b-{name}").glob("*.gguf"))
    file = places.models / "1b-bf16.gguf"
    if not file.is_file():
        aside = file.with_suffix(".incomplete")
        places.run([places.python, peer_script(places, "make_gguf.py"), "1b", "bf16", aside])
        aside.rename(file)
    return file


def llama_bench(name, prompt, new):
    """llama.cpp: `prompt` tokens read, or `new` tokens written."""

    def peer(places, runs):
        if not places.python or not places.llama_bench:
            raise Missing("no llama-bench (BENCH_LLAMA)" if places.python else "no Python for the peers (BENCH_PYTHON)")
        script = peer_script(places, "p2_llama_bench.py")
        line = places.first_line(["env", f"LB_P={prompt}", f"LB_N={new}", f"LB_R={runs}", places.python, script, places.llama_bench, gguf(places, name)])
        if "error" in line:
            raise Missing(f"llama-bench: {line['error'].strip().splitlines()[-1]}")
        tokens, part = (prompt, line[f"prefill_{prompt}"]) if prompt else (new, line[f"decode_{new}"])
        return Process([tokens / speed for speed in part["samples"]], statistics.mean(line["others"]), line["peak_rss_mb"], line)

    return peer


def caption_metrics(places, runs):
    """pycocoevalcap: the sum of its parts, METEOR's Java included; a process a run."""
    lines = [run_script(places, "p6_metrics.py", PAIRS, 1) for _ in range(runs)]
    runs = [[timed for timed in line.values() if isinstance(timed, dict) and "median_s" in timed] for line in lines]
    for line in lines:
        if "meteor" not in line:
            raise Missing(f"pycocoevalcap's METEOR, which needs java: {line.get('meteor_error')}")
    seconds = [sum(part["median_s"] for part in parts) for parts in runs]
    others = sum(part["others_mean"] * part["median_s"] for parts in runs for part in parts) / sum(seconds)
    return Process(seconds, others, max(line["peak_rss_mb"] + line["java_peak_rss_mb"] for line in lines), {"runs": lines})
