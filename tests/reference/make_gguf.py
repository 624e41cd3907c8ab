# SPDX-License-Identifier: Apache-2.0
"""Small random GGUF files that hold every supported quantisation, with logits from transformers on
the dequantised weights."""

import sys

import gguf
import numpy as np
import torch

from common import FIXTURES, byte_tokenizer, random_ids, say, tool
from gguf_model import load, permute

Q = gguf.GGMLQuantizationType
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# name: (architecture, pre-tokenizer, tied head, with rope_freqs, types of the matrices by layer)
VARIANTS = {
    "gguf-llama": (
        "llama",
        "smollm",
        False,
        True,
        [
            {
                "attn_q": Q.Q4_K,
                "attn_k": Q.Q5_K,
                "attn_v": Q.Q6_K,
                "attn_output": Q.Q4_0,
                "ffn_gate": Q.Q4_1,
                "ffn_up": Q.Q5_0,
                "ffn_down": Q.Q5_1,
            }
        ],
    ),
    "gguf-qwen2": (
        "qwen2",
        "qwen2",
        True,
        False,
        [
            {
                "attn_q": Q.Q5_K,
                "attn_k": Q.F32,
                "attn_v": Q.BF16,
                "attn_output": Q.Q8_0,
                "ffn_gate": Q.Q4_K,
                "ffn_up": Q.F16,
                "ffn_down": Q.Q4_0,
            }
        ],
    ),
}
HIDDEN, INTER, HEADS, KV, DIM = 256, 96, 4, 2, 32  # K-quants want rows of 256


def halves(values):
    return np.asarray(values, np.float16).view(np.uint8)


def k_blocks(rng, kind, rows, columns, std):
    """Random K-quant bytes: gguf-py only reads these. Scales, minima and quants are uniform, so the
    spread follows from d and dmin, which are set to give std."""
    n = rows * columns // 256
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    jitter = rng.uniform(0.7, 1.3, n)
    if kind == Q.Q6_K:  # d last; value d * sc * (q - 32)
        blocks[:, -2:] = halves(std / 1370 * jitter).reshape(n, 2)
    else:  # d, dmin first; value d * sc * q - dmin * mn, zero on average
        middle = 7.5 if kind == Q.Q4_K else 15.5
        d = std / (32 * middle) * jitter
        blocks[:, 0:2] = halves(d).reshape(n, 2)
        blocks[:, 2:4] = halves(d * middle).reshape(n, 2)
    return blocks.reshape(rows, columns // 256 * size)


class File:
    """A GGUF file in the making."""

    def __init__(self, path, architecture, seed):
        self.writer = gguf.GGUFWriter(path, architecture)
        self.rng = np.random.default_rng(seed)

    def vector(self, name, n, mean, std):
        self.writer.add_tensor(name, self.rng.normal(mean, std, n).astype(np.float32))

    def matrix(self, name, kind, rows, columns, gain, heads=0):
        """heads: rows are permuted as the converter does, before they are quantised."""
        std = gain / columns**0.5
        if kind in (Q.Q4_K, Q.Q5_K, Q.Q6_K):
            data = k_blocks(self.rng, kind, rows, columns, std)
            self.writer.add_tensor(name, data, raw_dtype=kind)
            return
        w = self.rng.normal(0, std, (rows, columns)).astype(np.float32)
        if heads:
            w = permute(torch.from_numpy(w), heads).numpy()
        if kind == Q.F32:
            self.writer.add_tensor(name, w)
        elif kind == Q.F16:
            self.writer.add_tensor(name, w.astype(np.float16))
        else:
            self.writer.add_tensor(name, gguf.quants.quantize(w, kind), raw_dtype=kind)

    def close(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def metadata(w, architecture, pre, layers):
    tokens = list(byte_tokenizer(SPECIAL, [])["model"]["vocab"]) + ["th", "Ġa"]
    w.add_name("random " + architecture)
    w.add_block_count(layers)
    w.add_context_length(2048)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(INTER)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV)
    w.add_key_length(DIM)  # not HIDDEN / HEADS
    w.add_value_length(DIM)
    w.add_layer_norm_rms_eps(1e-5 if architecture == "llama" else 1e-6)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(DIM)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * 258)
    w.add_token_merges(["t h", "\u0120 a"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    return len(tokens)


def build(path, name, seed):
    architecture, pre, tied, freqs, layers = VARIANTS[name]
    f = File(path, architecture, seed)
    vocab = metadata(f.writer, architecture, pre, len(layers))
    f.matrix("token_embd.weight", Q.Q6_K if tied else Q.Q8_0, vocab, HIDDEN, 3.0 if tied else 11.0)
    f.vector("output_norm.weight", HIDDEN, 1.0, 0.4)
    if not tied:
        f.matrix("output.weight", Q.Q6_K, vocab, HIDDEN, 2.5)
    if freqs:  # llama3: short wavelengths stay, long ones are divided by 8
        f.writer.add_tensor("rope_freqs.weight",
                            np.geomspace(1, 8, DIM // 2).astype(np.float32))  # fmt: skip
    permuted = architecture == "llama"
    for i, kinds in enumerate(layers):
        p = f"blk.{i}."
        f.vector(p + "attn_norm.weight", HIDDEN, 1.0, 0.4)
        f.vector(p + "ffn_norm.weight", HIDDEN, 1.0, 0.4)
        for stem, rows, columns, heads in (
            ("attn_q", HEADS * DIM, HIDDEN, HEADS),
            ("attn_k", KV * DIM, HIDDEN, KV),
            ("attn_v", KV * DIM, HIDDEN, 0),
            ("attn_output", HIDDEN, HEADS * DIM, 0),
            ("ffn_gate", INTER, HIDDEN, 0),
            ("ffn_up", INTER, HIDDEN, 0),
            ("ffn_down", HIDDEN, INTER, 0),
        ):
            f.matrix(p + stem + ".weight", kinds[stem], rows, columns, 1.4, heads * permuted)
            if architecture == "qwen2" and stem in ("attn_q", "attn_k", "attn_v"):
                f.vector(p + stem + ".bias", rows, 0.0, 0.5)
    f.close()
    return vocab


def make(name):
    folder = FIXTURES / name
    folder.mkdir(parents=True, exist_ok=True)
    seed = 520 + list(VARIANTS).index(name)
    vocab = build(folder / "model.gguf", name, seed)
    ids = random_ids(seed, 48, vocab)
    _, model = load(folder / "model.gguf")
    logits, _ = tool.forward(model, ids)
    tool.write(folder / "reference.safetensors", tool.tensors_of(ids, logits),
               type(model).__name__, "float32", seed)  # fmt: skip
    say(folder, logits)


if __name__ == "__main__":
    tool.exact_arithmetic()
    torch.set_num_threads(1)
    for variant in sys.argv[1:] or VARIANTS:
        make(variant)
