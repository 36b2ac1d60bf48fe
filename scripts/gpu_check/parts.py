"""The parts: what each runs, compares and measures. Each gives `agrees` or `measured`, or raises why it could not, or what disagreed."""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import losses
import sides
from running import Failed, Limit, Skipped, run

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent


class Check:
    """What was asked, and what the parts have found for one another."""

    def __init__(self, options):
        self.options, self.device = options, options.device
        self.on_cuda = options.device != "cpu"
        self.ctscribe, self.attention_times = options.ctscribe, options.attention_times
        self.on_cuda_test, self.device_tests = options.on_cuda, options.device_tests
        self.machine = machine(self)

    def program(self):
        if not self.ctscribe:
            raise Skipped("no ctscribe: it was not built (CTSCRIBE names one)")
        return self.ctscribe

    def device_option(self, *command):
        """`--device`, which the program of an earlier commit does not know; the CPU is what it takes anyway."""
        known = "--device" in run([self.program(), *command, "--help"], 30).printed
        if not known and self.on_cuda:
            raise Skipped(f"this ctscribe does not know `{' '.join(command)} --device`: it is of a commit before that option, and only runs on the CPU")
        return ["--device", self.device] if known else []


def first_line(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT).stdout.strip().splitlines()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return None


def machine(check):
    """What the numbers were measured on."""
    number = check.device.removeprefix("cuda:")
    query = "--query-gpu=name,driver_version,memory.total,compute_cap"
    gpu = first_line("nvidia-smi", query, "--format=csv,noheader", "-i", number) or "nvidia-smi names none"
    release = [line for line in (compiler_version() or "").splitlines() if "release" in line]
    return {
        "GPU, driver, memory, compute capability": gpu if check.on_cuda else "none asked",
        "nvcc": release[0].strip() if release else "none",
        "rustc": first_line("rustc", "--version") or "none",
        "cores": os.cpu_count(),
        "commit": first_line("git", "rev-parse", "--short", "HEAD") or "unknown",
    }


def compiler_version():
    try:
        return subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None


# build

TARGETS = {
    "ctscribe": ["-p", "ctscribe", "--bin", "ctscribe"],
    "attention_times": ["-p", "ctscribe-ops", "--example", "attention_times"],
    "on_cuda": ["-p", "ctscribe-ops", "--test", "on_cuda"],
    "device": ["-p", "ctscribe", "--test", "device"],
}


def build(check, limit, record):
    """The program, the comparisons and the timer, where they are not given."""
    given = {"ctscribe": check.ctscribe, "attention_times": check.attention_times}
    if check.on_cuda:
        given |= {"on_cuda": check.on_cuda_test, "device": check.device_tests}
    for name, path in given.items():
        if path and not os.access(path, os.X_OK):
            raise Failed(f"{name}: {path} is no program that can be run")
    if all(given.values()):
        record["notes"].append(f"given, not built: {', '.join(given)}")
        return "measured"
    if not shutil.which("cargo"):
        raise Skipped("no cargo on the path; CTSCRIBE, ON_CUDA, DEVICE_TESTS and ATTENTION_TIMES name programs that were built elsewhere")
    if check.on_cuda and not shutil.which("nvcc"):
        raise Skipped("no nvcc on the path, and CUDA_HOME names none; CTSCRIBE, ON_CUDA, DEVICE_TESTS and ATTENTION_TIMES name programs that were built elsewhere")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    warm = any((target / "release/build").glob("candle-kernels-*" if check.on_cuda else "*"))
    record["notes"].append(f"{target} was {'warm' if warm else 'cold'}")
    missing = [name for name, path in given.items() if not path]
    targets = [word for name in missing for word in TARGETS[name]]
    packages = sorted({TARGETS[name][1] for name in missing})
    features = ["--features", ",".join(f"{package}/cuda" for package in packages)] if check.on_cuda else []
    command = ["cargo", "build", "--release", *targets, *features, "--message-format", "json", "--manifest-path", ROOT / "Cargo.toml"]
    ended = run(command, limit.left())
    if ended.code is None:
        raise Skipped(f"{ended.complaint()}; `--part build --seconds build=590` in a command of its own leaves a warm target folder")
    if ended.code:
        raise Failed(f"cargo: {ended.complaint()}")
    built = {line["target"]["name"]: line["executable"] for line in ended.lines() if line.get("executable")}
    check.ctscribe = check.ctscribe or built.get("ctscribe")
    check.attention_times = check.attention_times or built.get("attention_times")
    check.on_cuda_test = check.on_cuda_test or built.get("on_cuda")
    check.device_tests = check.device_tests or built.get("device")
    record["rows"].append({"build": ", ".join(missing), "seconds": ended.seconds, "target": "warm" if warm else "cold"})
    return "measured"


# comparisons


def comparison(check, program, name, variable):
    if not check.on_cuda:
        raise Skipped(f"{name} compares a CUDA device with the CPU: there is one device here")
    if not program:
        raise Skipped(f"no test program {name}: it was not built ({variable} names one)")
    return program


def operations(check):
    return comparison(check, check.on_cuda_test, "on_cuda", "ON_CUDA")


def passed(printed):
    """Tests that passed, of what a Rust test program prints.

    >>> passed("test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out")
    12
    """
    counts = [line.split(". ", 1)[1].split(" passed")[0] for line in printed.splitlines() if line.startswith("test result: ok.")]
    return sum(map(int, counts))


def faults(text):
    """What a Rust test program says of its failures.

    >>> faults("thread 'a' panicked at tests/a.rs:1:2:\\nstage 0: 0.3 apart\\ntest a ... FAILED\\ntest b ... ok")
    ['stage 0: 0.3 apart', 'test a ... FAILED']
    """
    lines = text.splitlines()
    told = [line for before, line in zip([""] + lines, lines) if "panicked at" in before or "off by" in line or line.endswith("FAILED")]
    return list(dict.fromkeys(told))


def compared(check, limit, record, program):
    """A test program that compares the device with the CPU."""
    ended = run([program, "--nocapture"], limit.left(), check.device)
    if ended.code is None:
        raise Skipped(ended.complaint())
    if "nothing was compared" in ended.errors + ended.printed:
        raise Skipped("the driver gave no device; nothing was compared")
    count = passed(ended.printed)
    if ended.code or not count:
        raise Failed("; ".join(faults(ended.errors + ended.printed)[:5]) or ended.complaint())
    record["rows"].append({"tests": count, "seconds": ended.seconds})
    return "agrees"


def ops(check, limit, record):
    """Every operation's values and gradients on the device and on the CPU."""
    return compared(check, limit, record, operations(check))


def stages(check, limit, record):
    """Gradients of both stages and decoders, an observation, a step's waits and a resumed run on the device."""
    return compared(check, limit, record, comparison(check, check.device_tests, "device", "DEVICE_TESTS"))


def sanitizer(check, limit, record):
    """The same under compute-sanitizer."""
    program = operations(check)
    if not shutil.which("compute-sanitizer"):
        raise Skipped("compute-sanitizer is not installed")
    for tool in ("memcheck", "racecheck"):
        limit.check()
        ended = run(["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", program, "--test-threads", "1"], limit.left(), check.device)
        if ended.code is None:
            raise Skipped(f"{tool}: {ended.complaint()}")
        if ended.code:
            raise Failed(f"{tool}: {ended.complaint()}")
        record["rows"].append({"tool": tool, "tests": passed(ended.printed), "seconds": ended.seconds})
    return "agrees"


# training


def steps(check):
    """`--set` options: every step's loss is told. A quick run takes few steps and few phantoms; the CPU's own proof takes fewer."""
    # train, valid; steps of language, structure, llama, bert
    tiny, quick, whole = ((64, 12), (4, 4, 4, 4)), ((160, 20), (20, 40, 20, 20)), ((400, 40), (40, 120, 60, 60))
    phantoms, counts = tiny if not check.on_cuda else quick if check.options.quick else whole
    stages = dict(zip(("language", "train_structure", "llama", "bert"), counts))
    keys = [f"phantoms.train={phantoms[0]}", f"phantoms.valid={phantoms[1]}"]
    keys += [f"{stage}.training.steps={count}" for stage, count in stages.items()] + [f"{stage}.training.log_every=1" for stage in stages]
    keys += [f"{decoder}.generation.max_new_tokens={160 if check.on_cuda else 24}" for decoder in ("llama", "bert")]
    return [word for key in keys for word in ("--set", key)]


def demo(check, folder, device, limit, record):
    ended = run([check.program(), "demo", "--quick", "--out", folder, *steps(check), *device], limit.left(), check.device)
    if ended.code is None:
        raise Skipped(f"demo {' '.join(device)}: {ended.complaint()}")
    if ended.code:
        raise Failed(f"demo {' '.join(device)}: {ended.complaint()}")
    record["notes"].append(f"demo {' '.join(device) or 'on the CPU'}: {ended.seconds:.0f} s"
                           + (f", device memory {ended.device_peak_mib:.0f} MiB" if ended.device_peak_mib else ""))
    return Path(folder) / "run"


def training(check, limit, record):
    """Both stages and both decoders trained on phantoms, on the device and on the CPU: losses agree."""
    option = check.device_option("demo")
    with tempfile.TemporaryDirectory() as folder:
        on_device = demo(check, f"{folder}/device", option, limit, record)
        on_cpu = demo(check, f"{folder}/cpu", ["--device", "cpu"] if option else [], limit, record)
        record["rows"] += losses.rows(on_device, on_cpu)
    wrong = [f"{row['stage']}, {row['what']}: {row['device']} on the device, {row['cpu']} on the CPU" for row in record["rows"] if not row["agrees"]]
    if wrong:
        raise Failed("; ".join(wrong))
    return "agrees"


# attention


def attention(check, limit, record):
    """Forward, and forward + backward, beside PyTorch's: causal, bf16, 32 heads of 128."""
    if not check.attention_times:
        raise Skipped("no attention_times: it was not built (ATTENTION_TIMES names one)")
    tokens = (526,) if check.options.quick else (526, 2048)
    shapes = [f"{batch}x{length}" for length in tokens for batch in (1, 4, 8)] if check.on_cuda else ["1x33", "2x33"]
    arguments = [check.device, "bf16" if check.on_cuda else "f32", "30" if check.on_cuda else "3", *shapes]
    heads = {} if check.on_cuda else {"ATTENTION_HEADS": "2"}
    ours = run([check.attention_times, *arguments], limit.left() / 2, check.device, heads)
    if ours.code:
        raise Failed(f"attention_times: {ours.complaint()}")
    peer = by_shape(run([check.options.python, PEERS / "peer_attention.py", *arguments], limit.left(), check.device, heads), "PyTorch", record)
    timed = {line["shape"]: line for line in ours.lines()}
    if ours.code is None:
        record["notes"].append(f"attention_times: {ours.complaint()}: the shapes that it had come to are told")
    for shape in shapes:
        own, other = timed.get(shape, {}), peer.get(shape, {})
        row = {"batch x tokens": shape, "ours forward ms": own.get("forward_ms"), "ours forward + backward ms": own.get("both_ms")}
        row |= {"PyTorch forward ms": other.get("forward_ms"), "PyTorch forward + backward ms": other.get("both_ms"), "its kernel": other.get("kernel")}
        ratios = {f"ratio {name}": ratio(other.get(key), own.get(key)) for name, key in (("forward", "forward_ms"), ("forward + backward", "both_ms"))}
        record["rows"].append(row | ratios)
    return "measured"


def ratio(peer, ours):
    """How many times faster we are."""
    return peer / ours if peer and ours else None


def by_shape(ended, name, record):
    """The peer's lines by shape; a note where it could not run to its end."""
    if ended.code != 0:
        record["notes"].append(f"{name}: {ended.complaint()}")
    return {line["shape"]: line for line in ended.lines()}


# LoRA


def weights(check, limit, record):
    """Random weights of LLaMA2-7B."""
    name = weights_name(check)
    folder = Path(check.options.models) / name
    made = folder.is_dir()
    Path(check.options.models).mkdir(parents=True, exist_ok=True)
    shape, kind = name.split("-")
    if not made:
        aside = folder.with_name(f"{name}.incomplete")
        shutil.rmtree(aside, ignore_errors=True)
        ended = run([check.program(), "phantom", "--weights", *sides.WEIGHTS[shape], "--format", sides.FORMATS[kind], "--out", aside], limit.left())
        if ended.code is None:
            raise Skipped(f"phantom --weights: {ended.complaint()}")
        if ended.code:
            raise Failed(f"phantom --weights: {ended.complaint()}")
        aside.rename(folder)
        record["notes"].append(f"{folder}: made in {ended.seconds:.0f} s")
    return "measured"


def weights_name(check):
    return "tiny-bf16" if not check.on_cuda else "7b2-bf16" if check.options.quick else "7b-bf16"


def weights_made(check):
    """The name of the random weights and their folder."""
    name = weights_name(check)
    folder = Path(check.options.models) / name
    if not folder.is_dir():
        raise Skipped(f"no random weights in {folder} (part weights)")
    return name, folder


def lora(check, limit, record):
    """A LoRA step beside PEFT's: bf16, adapters on q_proj and v_proj, random weights."""
    name, folder = weights_made(check)
    option = check.device_option("bench", "lora-step")
    # batch, visual + prompt + text tokens
    shapes = [(batch, 110, 16, 400) for batch in (1, 4, 8)] + [(1, 110, 16, 1922)] if check.on_cuda else [(2, 5, 3, 8)]
    runs = 10 if check.on_cuda else 1
    for shape in shapes:
        limit.check()
        record["rows"].append(lora_row(check, limit, record, (folder, name.split("-")[0], option, runs), shape))
    return "measured"


def lora_row(check, limit, record, setting, shape):
    """One shape on both sides; where either has too little memory, both run their layers again in the backward pass."""
    for again in (False, True):
        ours, peer = our_step(check, limit, setting, shape, again), peer_step(check, limit, record, setting, shape, again)
        if not lacks_memory(ours) and not lacks_memory(peer):
            break
    batch, visual, prompt, text = shape
    if "error" in ours and not lacks_memory(ours):
        record["notes"].append(f"ctscribe, batch {batch}: {ours['error']}")
        if ours["code"] is not None:
            raise Failed(f"bench lora-step, batch {batch}, {visual + prompt + text} tokens: {ours['error']}")
    return {
        "weights": setting[1], "batch": batch, "tokens": visual + prompt + text, "recomputing": again,
        "ours s": ours.get("median_s"), "PEFT s": peer.get("seconds"), "ratio": ratio(peer.get("seconds"), ours.get("median_s")),
        "ours tokens/s": ours.get("items_per_s"), "ours MiB": ours.get("peak"), "PEFT MiB": peer.get("peak"), "PEFT allocated MiB": peer.get("peak_mib"),
        "why not": "; ".join(f"{side}: {line['error']}" for side, line in (("ours", ours), ("PEFT", peer)) if "error" in line) or None,
    }


def lacks_memory(line):
    """
    >>> [lacks_memory({"error": text}) for text in ("CUDA_ERROR_OUT_OF_MEMORY", "an illegal memory access")], lacks_memory({})
    ([True, False], False)
    """
    return "out of memory" in line.get("error", "").lower().replace("_", " ")


def our_step(check, limit, setting, shape, again):
    folder, _, option, runs = setting
    batch, visual, prompt, text = shape
    sizes = ["--batch", batch, "--visual", visual, "--prompt", prompt, "--text", text]
    command = [check.program(), "bench", "lora-step", folder, *sizes, "--runs", runs, *option, *(["--recompute"] if again else [])]
    ended = run(command, limit.left(), check.device)
    lines = [line for line in ended.lines() if line.get("bench") == "lora-step"]
    if ended.code != 0 or not lines:
        return {"error": ended.complaint(), "code": ended.code}
    return lines[-1] | {"peak": ended.device_peak_mib if check.on_cuda else lines[-1]["peak_mib"]}


def peer_step(check, limit, record, setting, shape, again):
    _, model, _, runs = setting
    named = "{}x{}+{}+{}".format(*shape) + ("r" if again else "")
    ended = run([check.options.python, PEERS / "peer_lora.py", check.device, model, runs, named], limit.left(), check.device)
    line = next(iter(ended.lines()), {"error": ended.complaint()})
    return line | {"peak": ended.device_peak_mib if check.on_cuda else line.get("peak_mib")}


# decoding


def decode(check, limit, record):
    """Tokens of LLaMA2-7B one after the other, with passes replayed as CUDA graphs and without."""
    name, folder = weights_made(check)
    option = check.device_option("bench", "decode")
    new, runs = (128, 5) if check.on_cuda else (8, 1)
    taken = {}
    for kind, more in (("graphs", []), ("launches", ["--no-graphs"])):
        ended = run([check.program(), "bench", "decode", folder, "--new", new, "--runs", runs, *option, *more], limit.left(), check.device)
        if ended.code is None:
            raise Skipped(f"bench decode: {ended.complaint()}")
        if ended.code or not ended.lines():
            raise Failed(f"bench decode: {ended.complaint()}")
        if "not replayed" in ended.errors:
            raise Failed(ended.errors.strip().splitlines()[-1])
        taken[kind] = ended.lines()[-1]["median_s"]
    record["rows"].append({"weights": name, "tokens": new, "graphs s": taken["graphs"], "launches s": taken["launches"],
                           "ratio": ratio(taken["launches"], taken["graphs"]), "graphs ms a token": 1000 * taken["graphs"] / new})
    return "measured"


@dataclass(frozen=True)
class Part:
    carry_out: Callable[[Check, Limit, dict], str]
    seconds: int  # its budget
    what: str


# In this order: what proves comes before what times. Where the build is not warm, what comes last may find nothing left of the whole.
PARTS = {
    "build": Part(build, 240, "builds the program, the comparisons and the timer with the machine's nvcc"),
    "ops": Part(ops, 40, "every operation, values and gradients, against the CPU"),
    "stages": Part(stages, 40, "both stages, both decoders, an observation and a resumed run of tiny models, against the CPU"),
    "training": Part(training, 100, "the quick demo on the device and on the CPU: the same losses"),
    "attention": Part(attention, 40, "attention beside PyTorch's, timed"),
    "weights": Part(weights, 150, "random weights of LLaMA2-7B"),
    "lora": Part(lora, 120, "a LoRA step of LLaMA2-7B beside PEFT's, timed, with peak memory"),
    "decode": Part(decode, 40, "tokens of LLaMA2-7B with CUDA graphs and without, timed"),
    "sanitizer": Part(sanitizer, 30, "the operations under compute-sanitizer's memcheck and racecheck"),
}
