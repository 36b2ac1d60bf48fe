"""Compares logits of ctscribe and PEFT on adapters that either wrote. Called by scripts/check-peft."""

import subprocess
import sys
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file

TOLERANCE = 1e-5
IDS = [1, 17, 5, 99, 250, 31, 8, 3, 77, 140, 2]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pattern": {"rank_pattern": {"q_proj": 4, "down_proj": 2}, "alpha_pattern": {"v_proj": 8}},
}


def ours(program, base, adapter, out):
    ids = ",".join(map(str, IDS))
    subprocess.run([program, "adapter", "logits", "--base", base, "--adapter", adapter, "--ids", ids, "--out", out], check=True, stdout=subprocess.DEVNULL)
    return load_file(out)["logits"]


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


def compare(program, base, adapter, model, work):
    """Largest difference between both programs, and how much the adapter moves a logit at all."""
    expected = theirs(model)
    difference = (ours(program, base, adapter, work / "logits.safetensors") - expected).abs().max().item()
    return difference, (theirs(base_model(base)) - expected).abs().max().item()


def base_model(folder):
    return transformers.LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager").eval()


def written_by_ctscribe(program, work, kind):
    base, adapter = work / kind / "language", work / kind / "llama" / "adapter"
    model = peft.PeftModel.from_pretrained(base_model(base), adapter).eval()
    return compare(program, base, adapter, model, work)


def written_by_peft(program, work, kind):
    torch.manual_seed(3)
    base, adapter = work / kind / "language", work / f"{kind}-by-peft"
    config = peft.LoraConfig(r=6, lora_alpha=12, target_modules=TARGETS, task_type="CAUSAL_LM", **KINDS[kind])
    model = peft.get_peft_model(base_model(base), config)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.05)
        if "magnitude" in name:
            tensor.data *= 1 + 0.1 * torch.randn_like(tensor)
    model.eval().save_pretrained(adapter)
    return compare(program, base, adapter, model, work)


def main():
    program, work = sys.argv[1], Path(sys.argv[2])
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}; largest difference of a logit over {len(IDS)} tokens")
    worst = 0.0
    for kind in KINDS:
        for direction, check in [("ctscribe -> PEFT", written_by_ctscribe), ("PEFT -> ctscribe", written_by_peft)]:
            difference, moved = check(program, work, kind)
            worst = max(worst, difference)
            print(f"{kind:<8} {direction}: {difference:.2e} (the adapter moves a logit by up to {moved:.2e})")
            if moved < 1e-2:
                sys.exit("the adapter does next to nothing: nothing was shown")
    print("within" if worst <= TOLERANCE else "NOT within", TOLERANCE)
    sys.exit(worst > TOLERANCE)


main()
