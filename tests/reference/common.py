# SPDX-License-Identifier: Apache-2.0
"""What the fixture generators share: random weights with a spread that matters, and the writers."""

import importlib.util
import json
import pathlib

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures" / "reference"


def _load_tool():
    path = HERE.parent.parent / "tools" / "make-reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _load_tool()
assert_pillow = tool.assert_pillow


class Weights:
    """Random tensors by name. Linear weights have gain / sqrt(inputs), so that every layer's
    output is as large as its input: attention, rope, norms and routing then change the logits."""

    def __init__(self, seed, device="cpu", dtype=torch.float32):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.options = {"device": device, "dtype": dtype}
        self.tensors = {}

    def normal(self, name, *shape, std=1.0, mean=0.0):
        value = torch.randn(*shape, generator=self.generator, **self.options) * std + mean
        self.tensors[name] = value
        return value

    def linear(self, name, out, inputs, gain=1.0, bias=None):
        self.normal(name + ".weight", out, inputs, std=gain / inputs**0.5)
        if bias:
            self.normal(name + ".bias", out, std=bias)

    def norm(self, name, n, bias=None):
        """A norm's weight: far from 1, some of it negative."""
        self.normal(name + ".weight", n, std=0.4, mean=1.0)
        if bias:
            self.normal(name + ".bias", n, std=bias)


def decoder_ends(w, prefix, vocab, hidden, tied, head="lm_head"):
    """Embedding, final norm and head. The head's gain makes the largest logit about 10. One row of
    eight is so small that the first norm's eps counts."""
    rows = w.normal(
        prefix + "embed_tokens.weight", vocab, hidden, std=3 / hidden**0.5 if tied else 0.7
    )
    rows[::8] *= 0.01
    w.norm(prefix + "norm", hidden)
    if not tied:
        w.linear(head, vocab, hidden, gain=2.5)


def swiglu(w, name, hidden, inter, bias=None):
    w.linear(name + ".gate_proj", inter, hidden, 1.5, bias)
    w.linear(name + ".up_proj", inter, hidden, 1.5, bias)
    w.linear(name + ".down_proj", hidden, inter, 1.5, bias)


def qwen_text(w, c, dim):
    """The language model of a Qwen2.5-VL; dim: of a head."""
    hidden, kv = c["hidden_size"], c["num_key_value_heads"] * dim
    decoder_ends(w, "model.", c["vocab_size"], hidden, c["tie_word_embeddings"])
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        w.norm(p + "input_layernorm", hidden)
        w.linear(p + "self_attn.q_proj", hidden, hidden, 1.4, bias=0.5)
        w.linear(p + "self_attn.k_proj", kv, hidden, 1.4, bias=0.5)
        w.linear(p + "self_attn.v_proj", kv, hidden, 1.2, bias=0.5)
        w.linear(p + "self_attn.o_proj", hidden, hidden, 1.2)
        w.norm(p + "post_attention_layernorm", hidden)
        swiglu(w, p + "mlp", hidden, c["intermediate_size"])


def qwen_vision(w, v, p="visual."):
    width = v["hidden_size"]
    w.normal(p + "patch_embed.proj.weight", width, 3, 2, 14, 14, std=2 / (3 * 2 * 196) ** 0.5)
    for i in range(v["depth"]):
        b = f"{p}blocks.{i}."
        w.norm(b + "norm1", width)
        w.linear(b + "attn.qkv", 3 * width, width, 1.5, bias=0.3)
        w.linear(b + "attn.proj", width, width, 1.3, bias=0.2)
        w.norm(b + "norm2", width)
        swiglu(w, b + "mlp", width, v["intermediate_size"], bias=0.2)
    w.norm(p + "merger.ln_q", width)
    w.linear(p + "merger.mlp.0", 4 * width, 4 * width, 1.4, bias=0.2)
    w.linear(p + "merger.mlp.2", v["out_hidden_size"], 4 * width, 0.7, bias=0.1)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_checkpoint(
    folder,
    config,
    tensors,
    dtype=torch.float32,
    shards=1,
    pattern="model-{:05d}-of-{:05d}.safetensors",
    extra=None,
):
    """config.json and the weights; with several shards also the index. extra: {file: JSON}."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.safetensors"), *folder.glob("*.json")]:
        old.unlink()
    write_json(folder / "config.json", config)
    for name, value in (extra or {}).items():
        write_json(folder / name, value)
    tensors = {k: v.to(dtype).contiguous() for k, v in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    cut = [names[i * len(names) // shards : (i + 1) * len(names) // shards] for i in range(shards)]
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": {}}
    for i, part in enumerate(cut):
        file = pattern.format(i + 1, shards)
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        index["weight_map"].update({n: file for n in part})
    write_json(folder / "model.safetensors.index.json", index)


def random_ids(seed, n, vocab):
    return torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def folder_bytes(folder):
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def say(folder, logits):
    """One line a fixture: the spread shows whether the weights are worth testing with."""
    top = logits.topk(2, dim=-1).values
    print(
        f"{folder.name:28} {folder_bytes(folder) / 1e3:7.1f} kB  max |logit| "
        f"{logits.abs().max():6.2f}  std {logits.std():5.2f}  least margin "
        f"{(top[:, 0] - top[:, 1]).min():.4f}  distinct argmax "
        f"{logits.argmax(-1).unique().numel()}"
    )


def picture(seed, width, height):
    """A u8 RGB image [height, width, 3]: slopes, a disc and noise, so that every pixel matters."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    a = torch.rand(3, 3, generator=g) * 2 - 0.5
    image = a[:, 0, None, None] + a[:, 1, None, None] * x + a[:, 2, None, None] * y
    cx, cy, r = torch.rand(3, generator=g).tolist()
    image = torch.where(((x - cx) ** 2 + (y - cy) ** 2 < r * r / 4), 1 - image, image)
    image = image + 0.15 * torch.randn(3, height, width, generator=g)
    return (image.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def byte_tokenizer(first, last):
    """tokenizer.json, byte-level without merges: every byte is a token, between special tokens."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in letters]
    byte = {**{b: chr(b) for b in letters}, **{b: chr(256 + i) for i, b in enumerate(rest)}}
    names = first + [byte[b] for b in range(256)] + last
    added = [
        {
            "id": names.index(s),
            "content": s,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for s in first + last
    ]
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {s: i for i, s in enumerate(names)},
            "merges": [],
        },
    }
