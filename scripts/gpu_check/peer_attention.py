"""PyTorch's attention, timed as ops/examples/attention_times.rs does it: DEVICE DTYPE RUNS BATCHxTOKENS... A line of JSON for each shape."""

import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

WIDTH, UNCOUNTED = 128, 3
KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}


def synchronise(device):
    if device != "cpu":
        torch.cuda.synchronize(device)


def median_ms(device, runs, work):
    calls, times = 1 if device == "cpu" else 10, []
    for _ in range(UNCOUNTED + runs):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise(device)
        times.append(1000 * (time.perf_counter() - start) / calls)
    return statistics.median(times[UNCOUNTED:])


def attentions(device):
    """Each attention at hand by its name; (B, H, L, D) -> (B, H, L, D)."""
    sdpa = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if device == "cpu":
        return {"sdpa": sdpa}

    def of(backend):
        def call(q, k, v):
            with sdpa_kernel(backend):
                return sdpa(q, k, v)

        return call

    found = {name: of(backend) for name, backend in KERNELS.items()}
    try:
        from flash_attn import flash_attn_func

        found["flash_attn"] = lambda q, k, v: flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True).transpose(1, 2)
    except ImportError:
        pass
    return found


def main(device, kind, runs, shapes):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[kind]
    heads, found = int(os.environ.get("ATTENTION_HEADS", "32")), attentions(device)
    torch.manual_seed(0)
    for shape in shapes:
        batch, tokens = map(int, shape.split("x"))
        q, k, v = (torch.rand(batch, heads, tokens, WIDTH, device=device, dtype=dtype).requires_grad_() for _ in range(3))
        upstream, timed, refused = torch.ones_like(q), {}, {}
        for name, attention in found.items():

            def forward():
                with torch.no_grad():
                    attention(q, k, v)

            def both():
                torch.autograd.grad(attention(q, k, v), (q, k, v), upstream)

            try:
                timed[name] = {"forward_ms": median_ms(device, runs, forward), "both_ms": median_ms(device, runs, both)}
            except RuntimeError as error:
                refused[name] = str(error).splitlines()[0]
        fastest = min(timed, key=lambda name: timed[name]["both_ms"], default=None)
        own = timed[fastest] if fastest else {}
        print(json.dumps({"shape": shape, "torch": torch.__version__, "kernel": fastest} | own | {"all": timed, "refused": refused}), flush=True)


main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
