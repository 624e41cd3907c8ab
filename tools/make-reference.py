#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make a reference.safetensors for `evenkeel check` from a Hugging Face model directory.

The official implementation (transformers) computes logits for given token ids; the file holds the
ids, the logits (all of them, or the k largest of each position with the log of the sum of all
exponentials) and, on request, every layer's output. docs/references.md says how to choose.

    make-reference.py MODEL -o reference.safetensors --prompt "The sea was calm" --top-k 64
    make-reference.py MODEL -o reference.safetensors --random 48 --seed 7 --trace
"""

import argparse
import json
import os
import sys
import warnings

# Before torch is imported: the result must not depend on which GPU happens to be there.
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")

import torch  # noqa: E402
import transformers  # noqa: E402

transformers.utils.logging.disable_progress_bar()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAFETENSORS = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}


def exact_arithmetic():
    """Full fp32 products everywhere: cuDNN uses TF32 by default, matmul may be told to."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def load(path, dtype="float32", device="cpu"):
    """The official class for the directory, eager attention, weights converted to dtype.

    A tensor that the class misses or does not know means that this is not the model that was
    meant, so it is an error here although transformers only warns."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        path,
        dtype=DTYPES[dtype],
        attn_implementation="eager",
        experts_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise SystemExit(
                f"{path}: {kind.replace('_', ' ')}: {sorted(map(str, info[kind]))[:5]}"
            )
    return model.to(device).eval()


def versions():
    return f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"


def traced_modules(model):
    """(name in the checkpoint, module) of the embedding, every layer and the final norm."""
    layers = [
        n
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.ModuleList) and n.endswith("layers")
    ]
    for name, module in model.named_modules():
        stem, _, last = name.rpartition(".")
        if stem in layers and last.isdigit():
            yield name, module
        elif last in ("embed_tokens", "norm") and f"{stem}.layers" in layers:
            yield name, module


@torch.no_grad()
def forward(model, ids, trace=False, **inputs):
    """Logits [T, V] in fp32 of one forward pass over ids, and {module name: output [T, D]}."""
    outputs, hooks = {}, []

    def keep(name):
        def hook(_module, _args, out):
            out = out[0] if isinstance(out, tuple) else out
            outputs[name] = out.detach().float().reshape(-1, out.shape[-1]).cpu().clone()

        return hook

    if trace:
        hooks = [m.register_forward_hook(keep(n)) for n, m in traced_modules(model)]
    batch = torch.tensor([ids], dtype=torch.int64, device=model.device)
    logits = model(input_ids=batch, use_cache=False, **inputs).logits[0].float().cpu()
    for h in hooks:
        h.remove()
    return logits, outputs


def tensors_of(ids, logits, top_k=None, positions=None, trace=None):
    """The tensors of the file; logits [T, V] are cut to positions and to the top_k largest."""
    out = {"input_ids": torch.tensor(ids, dtype=torch.int64)}
    if positions is not None:
        out["positions"] = torch.tensor(positions, dtype=torch.int64)
        logits = logits[out["positions"]]
    if top_k:
        best = torch.topk(logits, min(top_k, logits.shape[-1]), dim=-1)
        out["topk_ids"] = best.indices.to(torch.int64).contiguous()
        out["topk_logits"] = best.values.float().contiguous()
        out["logsumexp"] = torch.logsumexp(logits.double(), dim=-1).float()
    else:
        out["logits"] = logits.float().contiguous()
    for name, value in (trace or {}).items():
        out["trace." + name] = value.contiguous()
    return out


def save(path, tensors, meta):
    """A safetensors file whose bytes depend on the contents alone: the library's own writer gives
    the metadata in another order every time."""
    names = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))  # keeps all aligned
    header, at = {"__metadata__": dict(sorted(meta.items()))}, 0
    for n in names:
        t = tensors[n]
        header[n] = {
            "dtype": SAFETENSORS[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [at, at + t.nbytes],
        }
        at += t.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for n in names:
            f.write(tensors[n].contiguous().numpy().tobytes())


def write(path, tensors, model, dtype, seed, **more):
    meta = {
        "model": model,
        "versions": versions(),
        "dtype": dtype,
        "seed": str(seed),
        "attention": "eager",
        **more,
    }
    save(path, tensors, meta)


def parse_positions(text, n):
    """'0:8,31,-1' as a sorted list of rows of n."""
    rows = set()
    for part in text.split(","):
        if ":" in part:
            first, last = part.split(":", 1)
            rows.update(range(n)[slice(int(first) if first else None, int(last) if last else None)])
        else:
            rows.add(range(n)[int(part)])
    return sorted(rows)


def ids_of(args, vocab):
    """Token ids from whichever of --ids, --prompt, --prompt-file, --random was given."""
    if args.ids is not None:
        ids = [int(x) for x in args.ids.replace(",", " ").split()]
    elif args.random is not None:
        generator = torch.Generator().manual_seed(args.seed)
        ids = torch.randint(0, vocab, (args.random,), generator=generator).tolist()
    else:
        # Not AutoTokenizer: its guesses add or drop tokens and, for DeepSeek, lose the spaces.
        from tokenizers import Tokenizer

        file = os.path.join(args.model, "tokenizer.json")
        if not os.path.exists(file):
            raise SystemExit(f"{file}: not there; give --ids or --random instead of a text")
        text = args.prompt
        if text is None:
            with open(args.prompt_file, encoding="utf-8") as f:
                text = f.read()
        ids = Tokenizer.from_file(file).encode(text, add_special_tokens=args.special).ids
    bad = [i for i in ids if not 0 <= i < vocab]
    if not ids or bad:
        raise SystemExit(f"token ids must be 0..{vocab - 1} and at least one; got {bad[:3] or ids}")
    return ids


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    p.add_argument("model", help="directory with config.json and *.safetensors")
    p.add_argument("-o", "--output", required=True, help="file to write")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="text, through the directory's tokenizer.json")
    what.add_argument("--prompt-file", help="file with the text")
    what.add_argument("--ids", help="token ids, comma- or space-separated")
    what.add_argument("--random", type=int, metavar="T", help="T random ids from the seed")
    p.add_argument("--special", action="store_true", help="let the tokenizer add bos and the like")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the computation; the weights are converted (default: float32)",
    )
    p.add_argument("--top-k", type=int, metavar="N", help="keep the N largest logits of a position")
    p.add_argument("--positions", help="rows to keep, as 0:8,31,-1 (default: all)")
    p.add_argument("--trace", action="store_true", help="also every layer's output")
    p.add_argument("--device", default="cpu", help="cpu (default) or cuda:0")
    p.add_argument("--threads", type=int, help="of the CPU")
    return p.parse_args()


def main():
    args = arguments()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if args.threads:
        torch.set_num_threads(args.threads)
    exact_arithmetic()
    model = load(args.model, args.dtype, args.device)
    ids = ids_of(args, model.get_input_embeddings().num_embeddings)
    rows = parse_positions(args.positions, len(ids)) if args.positions else None
    logits, trace = forward(model, ids, args.trace)
    if not torch.isfinite(logits).all():
        raise SystemExit("the official implementation gave logits that are not finite")
    write(
        args.output,
        tensors_of(ids, logits, args.top_k, rows, trace),
        type(model).__name__,
        args.dtype,
        args.seed,
    )
    kept = len(rows) if rows is not None else len(ids)
    print(
        f"{args.output}: {type(model).__name__}, {len(ids)} tokens, {kept} positions, "
        f"max |logit| {logits.abs().max():.3f}, last argmax {logits[-1].argmax()}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
