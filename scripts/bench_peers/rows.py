"""The rows of the table: what each side runs, what is asked of the ratio, and the least time that the machine allows."""

from dataclasses import dataclass, replace
from typing import Callable

import sides

# The benchmarks' LLaMA shapes: layers, width, KV width, feed-forward width; all have 32,000 words.
SHAPES = {"tiny": (4, 512, 512, 1376), "1b": (22, 2048, 256, 5632), "7b2": (2, 4096, 4096, 11008), "7b": (32, 4096, 4096, 11008)}
VOCABULARY = 32_000
NEW_TOKENS = 64


@dataclass(frozen=True)
class Row:
    name: str
    work: str
    ours: Callable  # (places, runs) -> sides.Process
    peer: Callable | None
    target: str  # in words
    speed: float | None  # the least peer time / our time
    memory: float | None = None  # the most our peak / the peer's
    file_memory: float | None = None  # the most our peak / the weights' file
    most_s: float | None = None  # the most seconds, where there is no peer
    floor: Callable | None = None  # (ceilings, the peer's line or {}) -> seconds
    weights: str | None = None  # our weights, in the folder of models
    tokens: int | None = None  # tokens of the work, where tokens a second are of interest
    once: bool = False  # too long to repeat
    by_name: bool = False  # too large to run unless named


def compute_floor(kind):
    """The peer's own count of operations at the machine's peak for `kind` of number."""
    return lambda ceilings, peer: peer["gflop"] / ceilings[f"hw_{kind}_gflops"] if "gflop" in peer else None


def parameters(shape):
    """Weights of a LLaMA's layers, and of its head (the embedding has as many)."""
    layers, width, kv, ffn = SHAPES[shape]
    return layers * (2 * width * width + 2 * width * kv + 3 * width * ffn), width * VOCABULARY


def prefill_floor(tokens):
    """Products of all positions, attention's causal half, the head at the last position; at bf16's peak, which 8-bit products share."""
    layers, width, _, _ = SHAPES["1b"]
    body, head = parameters("1b")
    gflop = (2 * body * tokens + 2 * layers * tokens * tokens * width + 2 * head) / 1e9
    return lambda ceilings, _: gflop / ceilings["hw_bf16_gflops"]


def decode_floor(bits):
    """Every weight but the embedding read once a token."""
    body, head = parameters("1b")
    gigabytes = (body + head) * bits / 8 / 1e9
    return lambda ceilings, _: NEW_TOKENS * gigabytes / ceilings["hw_read_GBps"]


def inflate_floor(_, peer):
    """The fastest decompression alone, of those that the peer's Python has."""
    times = [timed["min_s"] for key, timed in peer.items() if key.startswith("gunzip_") and timed]
    return min(times, default=None)


def lora(shape, kind, speed, memory, *options, peer=None, **more):
    """The peer in numbers of `kind`, or of those that are its best for such weights."""
    label = {"tiny": "tiny (4 layers, 512)", "1b": '"1B" (22 layers, 2048)', "7b2": "7B width, 2 layers", "7b": "7B, recomputing"}[shape]
    checkpoint = "1" if "--recompute" in options else "0"
    theirs = sides.script("p1_lora_train.py", "--model", shape, "--dtype", peer or kind, "--ckpt", checkpoint, "--extra", "0", runs="--runs")
    weights = f"{shape}-{kind}"
    target = f"{speed}x, memory {memory}x"
    return Row(f"lora-{weights}", f"LoRA step, {label}, 110 + 400 tokens, {kind}{f' (peer {peer})' if peer else ''}", sides.bench("lora-step", weights, *options), theirs, target, speed, memory,
               floor=compute_floor(peer or kind), weights=weights, tokens=510, **more)


def lora_in_integers(shape, speed, memory):
    """Weights of f32 multiplied in integers, which leaves time to compute layers again; the peer in f32 as in its own row, where it keeps everything."""
    row = lora(shape, "f32", speed, memory)
    ours = sides.bench("lora-step", row.weights, "--precision", "int16", "--recompute")
    return replace(row, name=f"lora-{shape}-int16", work=row.work.replace(", f32", ", f32 in int16, recomputing"), ours=ours)


def lora_in_f32(shape, kind, speed, memory):
    """Weights of 16 bits multiplied in f32 where they lie; the peer in f32 takes them in f32."""
    row = lora(shape, "f32", speed, memory)
    weights = f"{shape}-{kind}"
    ours = sides.bench("lora-step", weights, "--precision", "f32")
    return replace(row, name=f"lora-{weights}-in-f32", work=row.work.replace(", f32", f", {kind} in f32"), ours=ours, weights=weights)


def decode(name, label, bits, speed):
    peer = sides.llama_bench(name, prompt=0, new=NEW_TOKENS)
    ours = sides.bench("decode", f"1b-{name}", "--new", str(NEW_TOKENS))
    return Row(f"decode-{name}", f'decode {NEW_TOKENS} tokens, "1B", {label}', ours, peer, f"{speed}x, memory 1.1x the file", speed, file_memory=1.1,
               floor=decode_floor(bits), weights=f"1b-{name}", tokens=NEW_TOKENS)


def prefill(tokens, name, label, speed):
    ours = sides.bench("prefill", f"1b-{name}", "--prompt", str(tokens))
    return Row(f"prefill-{tokens}-{name}", f'prefill {tokens} tokens, "1B", {label}', ours, sides.llama_bench(name, prompt=tokens, new=1), f"{speed}x", speed,
               floor=prefill_floor(tokens), weights=f"1b-{name}", tokens=tokens)


def ct_vit(name, work, shape, speed, memory, kind, *train):
    peer = sides.script("p3_ctvit.py", "--shape", shape, "--train", "1" if train else "0", "--extra", "0", runs="--runs")
    ours = sides.bench("encode", None, "--shape", *shape.split(","), "--precision", kind, *train)
    # the peer's products are in f32 in either row, and so is the ceiling
    return Row(f"{name}-{kind}", f"{work}, {kind}", ours, peer, f"{speed}x, memory {memory}x", speed, memory, floor=compute_floor("f32"))


def text(kind, speed, peer="f32"):
    ours, theirs = sides.bench("text-encoder", None, "--dtype", kind), sides.script("p5_text.py", peer)
    return Row(f"text-{kind}", f"text encoder, 64 sentences of 40 tokens, {kind}", ours, theirs, f"{speed}x", speed, floor=compute_floor(peer))


ROWS = [
    lora("tiny", "bf16", 2.5, 0.3),
    lora("1b", "bf16", 1.4, 0.7),
    lora("1b", "f32", 2.0, 0.6),
    lora_in_integers("1b", 2.0, 0.6),
    lora_in_f32("1b", "f16", 2.0, 0.6),
    lora("1b", "f16", 1.4, 0.7, peer="bf16"),
    lora("7b2", "bf16", 1.1, 0.9),
    lora("7b", "bf16", 1.1, 0.9, "--recompute", once=True, by_name=True),
    decode("bf16", "bf16", 16, 1.1),
    decode("q8", "8-bit", 8.5, 1.3),
    decode("q4", "4-bit (Q4_K_M)", 4.9, 1.4),  # bits a weight: Q4_K has 4.5, Q6_K 6.56; the mix without the embedding about 4.9
    prefill(126, "bf16", "bf16", 1.3),
    prefill(126, "q8", "8-bit", 3.0),
    prefill(512, "bf16", "bf16", 1.3),
    prefill(512, "q8", "8-bit", 3.0),
    *(ct_vit("encode-13824", "CT-ViT encode, 13,824 tokens", "240,480,480", 3.5, 0.4, kind) for kind in ("f32", "int16")),
    *(ct_vit("encode-4096", "CT-ViT encode, 4096 tokens", "160,320,320", 3.0, 0.4, kind) for kind in ("f32", "int16")),
    *(ct_vit("encode-train", "CT-ViT forward + backward, 4096 tokens", "160,320,320", 2.5, 0.5, kind, "--train") for kind in ("f32", "int16")),
    Row("prepare", "preparation, 512x512x300 .nii.gz to 480x480x240", sides.prepare, sides.script("p4_preprocess.py", "--extra", "0", runs="--runs"),
        "5x, memory 0.3x", 5.0, 0.3, floor=inflate_floor),
    text("f32", 2.0),
    text("int16", 2.0),
    text("bf16", 1.1, "bf16"),
    Row("metrics", "all metrics over 3,039 pairs", sides.evaluate, sides.caption_metrics, "20x", 20.0),
    Row("demo", "`demo`, whole", sides.demo, None, "under 240 s", None, most_s=240.0, once=True),
]
