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
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    name = (config.architectures or [""])[0]
    model, info = getattr(transformers, name, transformers.AutoModelForCausalLM).from_pretrained(
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


def hub_name(name):
    """A module's name as the hub's files have it: newer classes nest the parts of a Qwen2.5-VL."""
    return name.replace("model.language_model.", "model.").replace("model.visual", "visual")


def traced_modules(model):
    """(name in the checkpoint, module): every layer, the final norm, a vision tower, its blocks."""
    lists = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    stems = {n for n in lists if n.endswith((".layers", "visual.blocks"))}
    for name, module in model.named_modules():
        stem, _, last = name.rpartition(".")
        if stem in stems or f"{stem}.layers" in stems and last == "norm" or last == "visual":
            yield hub_name(name), module


def first_layer(model):
    """(name of the embedding in the checkpoint, first layer): what the layer is given is traced,
    since images have taken their places by then."""
    for name, module in model.named_modules():
        if name.endswith(".layers.0"):
            return hub_name(name).removesuffix("layers.0") + "embed_tokens", module
    raise SystemExit("no layers found to trace")


@torch.no_grad()
def forward(model, ids, trace=False, **inputs):
    """Logits [T, V] in fp32 of one forward pass over ids, and {module name: output [T, D]}."""
    outputs, hooks = {}, []

    def keep(name):
        def hook(_module, _args, out):
            out = out[0] if isinstance(out, tuple) else getattr(out, "pooler_output", out)
            outputs[name] = out.detach().float().reshape(-1, out.shape[-1]).cpu().clone()

        return hook

    def keep_input(_module, args, kwargs):
        x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        outputs[embedding] = x.detach().float().reshape(-1, x.shape[-1]).cpu().clone()

    if trace:
        embedding, first = first_layer(model)
        hooks = [m.register_forward_hook(keep(n)) for n, m in traced_modules(model)]
        hooks.append(first.register_forward_pre_hook(keep_input, with_kwargs=True))
    batch = torch.tensor([ids], dtype=torch.int64, device=model.device)
    logits = model(input_ids=batch, use_cache=False, **inputs).logits[0].float().cpu()
    for h in hooks:
        h.remove()
    if "image_grid_thw" in inputs:
        processor_order(outputs, inputs["image_grid_thw"], model.config.vision_config)
    return logits, outputs


# ---- Images of a Qwen2.5-VL


def assert_pillow():
    """Pillow to 12.0 resizes along rows first, always, as when these models were made. 12.3 takes
    the columns first for very tall images, 13.0 wherever that is cheaper; since the picture between
    the passes is u8, pixels change by up to 23."""
    from PIL import Image

    for (w, h), to in (((100, 60), (128, 9)), ((5, 1000), (28, 812))):
        image = Image.frombytes("RGB", (w, h), bytes(i * i % 251 for i in range(w * h * 3)))
        wide = image.resize((to[0], h), Image.BICUBIC)
        if image.resize(to, Image.BICUBIC) != wide.resize(to, Image.BICUBIC):
            raise SystemExit(f"Pillow {Image.__version__} resizes in another order: take 12.0.0")


def expand(ids, image_id, grids):
    """Every placeholder becomes as many as its image has merged cells."""
    if ids.count(image_id) != len(grids):
        raise SystemExit(f"{len(grids)} images, but {ids.count(image_id)} placeholders in the text")
    out, sizes = [], iter([int(t * h * w) // 4 for t, h, w in grids])
    for i in ids:
        out += [i] * (next(sizes) if i == image_id else 1)
    return out


def positions_of(ids, image_id, grids):
    """[3, T] by the published rule: text counts on all three rows, a cell of an image has
    (p, p + row, p + column), and the text goes on after the image's longer side."""
    out, p, at, grids = [], 0, 0, iter(grids)
    while at < len(ids):
        if ids[at] != image_id:
            out.append((p, p, p))
            p, at = p + 1, at + 1
            continue
        _, h, w = (int(n) for n in next(grids))
        out += [(p, p + y, p + x) for y in range(h // 2) for x in range(w // 2)]
        p, at = p + max(h, w) // 2, at + h * w // 4
    return torch.tensor(out).T.contiguous()


def image_inputs(model, path, ids, images):
    """(ids with the placeholders expanded, inputs of forward, extra tensors of the file)."""
    import numpy

    assert_pillow()
    if not hasattr(model, "model") or not hasattr(model.model, "get_rope_index"):
        raise SystemExit(f"images of a {type(model).__name__} are not supported")
    processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    made = processor(images, return_tensors="pt")
    grids, image_id = made["image_grid_thw"], model.config.image_token_id
    ids = expand(ids, image_id, grids)
    positions = positions_of(ids, image_id, grids)
    batch = torch.tensor([ids])
    kinds = (batch == image_id).int()
    theirs, _ = model.model.get_rope_index(batch, kinds, image_grid_thw=grids)
    if not torch.equal(theirs[:, 0], positions):
        print("note: this transformers computes other positions; the published rule is used",
              file=sys.stderr)  # fmt: skip
    inputs = {
        "pixel_values": made["pixel_values"].to(model.device, model.dtype),
        "image_grid_thw": grids.to(model.device),
        "position_ids": positions[:, None].to(model.device),
        "mm_token_type_ids": kinds.to(model.device),
    }
    extra = {f"image.{i}": torch.from_numpy(numpy.array(im)) for i, im in enumerate(images)}
    return ids, inputs, {**extra, "position_ids": positions}


def processor_order(trace, grids, vision):
    """The tower's blocks work on rows permuted into windows; puts them back into the order in which
    the processor gave the patches."""
    from transformers.vision_utils import get_vision_window_index

    index, _ = get_vision_window_index(
        grids.cpu(), spatial_merge_size=vision.spatial_merge_size,
        window_size=vision.window_size, patch_size=vision.patch_size)  # fmt: skip
    back = torch.argsort(index)
    for name, value in trace.items():
        if name.startswith("visual.blocks."):
            trace[name] = value.view(len(back), -1, value.shape[-1])[back].reshape(value.shape)


def open_image(path):
    """Upright RGB, as transformers' own loader makes it."""
    from PIL import Image, ImageOps

    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


# ---- The file


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


def bf16_note(exact, other):
    """Metadata: mean divergence (KL) and largest difference of bf16 logits from the fp32 ones."""
    exact, other = exact.double(), other.double()
    apart = exact.log_softmax(-1) - other.log_softmax(-1)
    kl = (exact.softmax(-1) * apart).sum(-1).mean()
    largest = (exact - other).abs().max()
    return {
        "bf16": json.dumps({"mean_kl": float(f"{kl:.3e}"), "max_diff": float(f"{largest:.3e}")})
    }


def noise(path, ids, logits, device="cpu", **inputs):
    """What the official implementation itself loses in bf16: the measure of anybody's bf16 run."""
    model = load(path, "bfloat16", device)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return bf16_note(logits, forward(model, ids, **inputs)[0])


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
    p.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="for Qwen2.5-VL: one for every <|image_pad|> of the text, in order",
    )
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
    p.add_argument(
        "--noise", action="store_true", help="also run in bf16 and note what that alone costs"
    )
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
    inputs, extra = {}, {}
    if args.image:
        images = [open_image(f) for f in args.image]
        ids, inputs, extra = image_inputs(model, args.model, ids, images)
    rows = parse_positions(args.positions, len(ids)) if args.positions else None
    logits, trace = forward(model, ids, args.trace, **inputs)
    if not torch.isfinite(logits).all():
        raise SystemExit("the official implementation gave logits that are not finite")
    tensors = tensors_of(ids, logits, args.top_k, rows, trace) | extra
    more = noise(args.model, ids, logits, args.device, **inputs) if args.noise else {}
    write(args.output, tensors, type(model).__name__, args.dtype, args.seed, **more)
    kept = len(rows) if rows is not None else len(ids)
    print(
        f"{args.output}: {type(model).__name__}, {len(ids)} tokens, {kept} positions, "
        f"max |logit| {logits.abs().max():.3f}, last argmax {logits[-1].argmax()}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
