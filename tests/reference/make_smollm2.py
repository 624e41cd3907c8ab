# SPDX-License-Identifier: Apache-2.0
"""Top-k logits of transformers on the dequantised SmolLM2-135M-Instruct GGUF.

    python make_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf

The GGUF's own dequantised weights are what both sides compute with, so quantisation is no part of
the difference. The q and k rows, which the GGUF stores in the order of interleaved rotary pairs,
are put back into the half-split order of Hugging Face first."""

import sys

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from common import FIXTURES, tool
from gguf_model import field, load

FOLDER = FIXTURES / "smollm2-135m-instruct-q4_1"
TOP_K = 64
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)

# name: (text, greedy tokens that are appended, so that the model's own words are scored too)
PROMPTS = {
    "chat": (CHAT.format("What is the capital of France, and which river flows through it?"), 48),
    "prose": (
        "A ship floats on an even keel when its cargo is placed well. The heavy crates go low "
        "and near the middle, the light ones above them, and nothing is left to slide about "
        "when the weather turns. The mate walked the hold twice before he signed the paper, "
        "for he had seen what 40 tons of loose grain can do to a small steamer in the Bay "
        "of Biscay.",
        0,
    ),
    "code": (
        'def fibonacci(n):\n    """Return the first n Fibonacci numbers."""\n'
        "    a, b = 0, 1\n    out = []\n    for _ in range(n):\n        out.append(a)\n"
        '        a, b = b, a + b\n    return out\n\n\nif __name__ == "__main__":\n'
        "    print(fibonacci(10))  # [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]\n",
        0,
    ),
    "list": (CHAT.format("List three uses of a lever."), 64),
    "scripts": (
        "Größe, naïve café, señor; Ελλάδα, Москва, 北京 and 東京; 1234567 × 89 ≈ 1.1e8 🙂  "
        "and   some    spaces.",
        0,
    ),
    "one": ("The", 0),
}


def tokenizer_of(reader):
    tokens = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in field(reader, "tokenizer.ggml.merges")]
    t = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(tokens)}, merges=merges))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    t.decoder = decoders.ByteLevel()
    kinds = field(reader, "tokenizer.ggml.token_type")
    t.add_special_tokens(
        [
            AddedToken(s, special=True, normalized=False)
            for s, kind in zip(tokens, kinds)
            if kind == gguf.TokenType.CONTROL
        ]
    )
    return t


@torch.no_grad()
def greedy(model, ids, n, stop):
    for _ in range(n):
        best = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        ids = ids + [best]
        if best == stop:
            break
    return ids


def main(path):
    tool.exact_arithmetic()
    reader, model = load(path)
    assert field(reader, "tokenizer.ggml.pre") == "smollm"
    tokenizer = tokenizer_of(reader)
    c = model.config
    print(
        f"theta {c.rope_parameters['rope_theta']}, eps {c.rms_norm_eps}, bos {c.bos_token_id}, "
        f"eos {c.eos_token_id}, vocabulary {c.vocab_size}"
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (text, n) in PROMPTS.items():
        ids = greedy(model, tokenizer.encode(text).ids, n, c.eos_token_id)
        logits, _ = tool.forward(model, ids)
        tool.write(
            FOLDER / f"{name}.safetensors",
            tool.tensors_of(ids, logits, TOP_K),
            "LlamaForCausalLM",
            "float32",
            0,
            prompt=text,
            text=tokenizer.decode(ids, False),
        )
        loss = torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(ids[1:]), reduction="sum"
        )
        top = logits.topk(2).values
        print(
            f"{name:8} {len(ids):4} tokens, loss {loss / max(len(ids) - 1, 1):.3f}, "
            f"least margin {(top[:, 0] - top[:, 1]).min():.5f}\n{tokenizer.decode(ids, False)}\n"
        )


if __name__ == "__main__":
    main(sys.argv[1])
