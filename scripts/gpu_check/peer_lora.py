"""PEFT's LoRA step on a LLaMA with random weights, as `ctscribe bench lora-step` does it.

r 8, alpha 16, q_proj and v_proj, AdamW, gradients clipped at 1.
    peer_lora.py DEVICE MODEL RUNS BATCHxVISUAL+PROMPT+TEXT[r]...      r: layers run again in the backward pass
A line of JSON for each shape; the model is made once.
"""

import json
import os
import resource
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, __version__

# Layers, width, feed-forward width: as `ctscribe phantom --weights` makes them.
MODELS = {"tiny": (4, 512, 1376, 8), "7b2": (2, 4096, 11008, 32), "7b": (32, 4096, 11008, 32)}


def model_of(name, device):
    layers, width, inner, heads = MODELS[name]
    config = LlamaConfig(vocab_size=32_000, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=heads, max_position_embeddings=4096, rms_norm_eps=1e-5, tie_word_embeddings=False, attn_implementation="sdpa")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    targets = ["q_proj", "v_proj"]
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM", bias="none")).train()


def sizes(shape):
    """
    >>> sizes("4x110+16+400r")
    (4, 110, 16, 400, True)
    """
    batch, lengths = shape.rstrip("r").split("x")
    return int(batch), *map(int, lengths.split("+")), shape.endswith("r")


def main(device, name, runs, shapes):
    on_cuda, model = device != "cpu", model_of(name, device)
    base, width = model.base_model.model, MODELS[name][1]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    for shape in shapes:
        batch, visual, prompt, text, again = sizes(shape)
        if again:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            base.gradient_checkpointing_disable()
        patches = 0.02 * torch.randn(batch, visual, width, device=device, dtype=torch.bfloat16)
        ids = torch.randint(3, 32_000, (batch, prompt + text), device=device)
        labels = torch.cat([torch.full((batch, visual), -100, device=device), ids], 1)
        labels[:, : visual + prompt] = -100
        mask = torch.ones_like(labels)

        def step():
            embedded = torch.cat([patches, base.get_input_embeddings()(ids)], 1)
            loss = model(inputs_embeds=embedded, attention_mask=mask, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()  # waits for the device

        line, times = {"shape": shape, "torch": torch.__version__, "transformers": __version__}, []
        try:
            if on_cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            for _ in range(1 + runs):
                start = time.perf_counter()
                line["loss"] = step()
                times.append(time.perf_counter() - start)
            line |= {"seconds": statistics.median(times[1:]), "runs_s": times[1:]}
        except torch.OutOfMemoryError as error:
            optimizer.zero_grad(set_to_none=True)
            line["error"] = "out of memory: " + str(error).splitlines()[0]
        allocated = torch.cuda.max_memory_allocated(device) / 2**20 if on_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(line | {"peak_mib": allocated}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
