"""Compares logits of ctscribe, llama.cpp and transformers (f32) on GGUF files. Called by scripts/check-llama-cpp."""

import ctypes
import subprocess
import sys
import tempfile

import gguf
import llama_cpp.llama_cpp as llama
import torch
import transformers
from safetensors.torch import load_file

# Products in 8 bits round the activations, too: llama.cpp's logits come within some hundredths of f32's spread; of other weights they would be 1.4 off.
SAME_MODEL = 0.1
# A greedy word is asked to agree where f32's best leads by so many of llama.cpp's distances: closer ones are rounding's to choose.
SIGMAS = 6
IDS = [1, 17, 5, 99, 250, 31, 8, 3, 77, 140, 2, 4051, 31999, 12, 640, 9000]
NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}


def ours(program, path):
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as out:
        ids = ",".join(map(str, IDS))
        subprocess.run([program, "adapter", "logits", "--base", path, "--ids", ids, "--out", out.name], check=True, stdout=subprocess.DEVNULL)
        return load_file(out.name)["logits"]


def llama_cpp_logits(path):
    """llama.cpp's logits (tokens, vocabulary), all ids in one batch."""
    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not read {path}")
    context = llama.llama_init_from_model(model, llama.llama_context_default_params())
    batch = llama.llama_batch_init(len(IDS), 0, 1)
    batch.n_tokens = len(IDS)
    for at, word in enumerate(IDS):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = word, at, 1, 0, 1
    if llama.llama_decode(context, batch):
        sys.exit(f"llama.cpp does not run {path}")
    words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rows = [torch.tensor(list((ctypes.c_float * words).from_address(ctypes.addressof(llama.llama_get_logits_ith(context, at).contents)))) for at in range(len(IDS))]
    llama.llama_free(context)
    llama.llama_model_free(model)
    return torch.stack(rows)


def hugging_face_name(name):
    if name in WHOLE:
        return WHOLE[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{kind}"


def unpermute(matrix, heads):
    """llama.cpp's order of a head's rows (pairs side by side) back to Hugging Face's (halves)."""
    outputs, inputs = matrix.shape
    return matrix.reshape(heads, outputs // heads // 2, 2, inputs).swapaxes(1, 2).reshape(outputs, inputs)


def transformers_logits(path):
    """Of the file's numbers in f32."""
    reader = gguf.GGUFReader(path)
    value = lambda key: reader.fields[f"llama.{key}"].contents()
    config = transformers.LlamaConfig(
        vocab_size=value("vocab_size"), hidden_size=value("embedding_length"), intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"), num_attention_heads=value("attention.head_count"), num_key_value_heads=value("attention.head_count_kv"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"), rope_theta=value("rope.freq_base"), max_position_embeddings=value("context_length"),
    )
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        matrix = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        weights[hugging_face_name(tensor.name)] = torch.from_numpy(unpermute(matrix, heads[part]) if part in heads else matrix.copy())
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config=config)
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0]


def distance(left, right):
    """Root mean square of a difference, as a share of the right side's spread."""
    return ((left - right).square().mean().sqrt() / right.std()).item()


def check(program, path):
    """Prints one file's line; what is wrong with it, in words."""
    exact, mine, theirs = transformers_logits(path), ours(program, path), llama_cpp_logits(path)
    same = lambda left, right: (left.argmax(1) == right.argmax(1)).sum().item()
    name, near, far = "/".join(path.split("/")[-2:]), distance(mine, exact), distance(theirs, exact)
    print(f"{name:<28} ctscribe {near:.4f} (same word {same(mine, exact)}), llama.cpp {far:.4f} (same word {same(theirs, exact)}); "
          f"of one another {distance(mine, theirs):.4f} (same word {same(mine, theirs)})", flush=True)
    best = exact.topk(2).values
    decided = best[:, 0] - best[:, 1] > SIGMAS * far * exact.std()
    faults = [] if near <= far else [f"{name}: ctscribe is farther from f32 than llama.cpp"]
    faults += [] if far < SAME_MODEL else [f"{name}: llama.cpp runs another model"]
    agree = torch.equal(mine.argmax(1)[decided], exact.argmax(1)[decided]) and torch.equal(theirs.argmax(1)[decided], exact.argmax(1)[decided])
    return faults + ([] if agree else [f"{name}: greedy words differ where f32's best is far ahead"])


def main():
    print(f"distance of logits from transformers {transformers.__version__} in f32 on the file's own numbers, {len(IDS)} tokens")
    faults = [fault for path in sys.argv[2:] for fault in check(sys.argv[1], path)]
    sys.exit("\n".join(faults) or 0)


main()
