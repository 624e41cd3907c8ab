#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Speed of transformers with a model over all GPUs as accelerate's balanced map places it.

usage: balanced_transformers.py OUT.json MODEL [MODEL ...]    MODELs: folders with a config.json

Random weights in BF16. Prefill: 64 prompts of 512 tokens, in forward passes of so many prompts as
is fastest; decode: 1, 16 and 64 sequences behind prompts of 512. Needs torch, transformers,
accelerate.
"""

import json
import pathlib
import sys
import time

import torch
import transformers
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory

PROMPT, NEW, PROMPTS = 512, 16, 64


def synchronize():
    for i in range(torch.cuda.device_count()):
        torch.cuda.synchronize(i)


def make(folder):
    """What from_pretrained(device_map="balanced") does, without a checkpoint."""
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda:0"):
        model = getattr(transformers, config.architectures[0])(config).eval()
    torch.set_default_dtype(torch.float32)
    model.tie_weights()
    whole = list(getattr(model, "_no_split_modules", None) or [])
    memory = get_balanced_memory(model, no_split_module_classes=whole)
    where = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
    return dispatch_model(model, where), where


def ids(model, n):
    vocab = model.get_input_embeddings().num_embeddings
    return torch.randint(0, vocab, (n, PROMPT), device="cuda:0")


def prefill(model, width):
    """Tokens a second of all prompts, `width` of them in a forward pass."""
    x, best = ids(model, PROMPTS), 1e9
    for _ in range(2):
        synchronize()
        start = time.perf_counter()
        for at in range(0, PROMPTS, width):
            model(input_ids=x[at : at + width], use_cache=True, logits_to_keep=1)
        synchronize()
        best = min(best, time.perf_counter() - start)
    return PROMPTS * PROMPT / best


def decode(model, batch):
    """Tokens a second behind the prompts, without their own time."""
    x = ids(model, batch)

    def generate(n):
        start = time.perf_counter()
        model.generate(
            input_ids=x,
            attention_mask=torch.ones_like(x),
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        synchronize()
        return time.perf_counter() - start

    generate(2)
    return batch * NEW / (generate(NEW + 1) - generate(1))


def measure(folder):
    out = {}
    model, where = make(folder)
    devices = [str(d) for d in where.values()]
    out["modules"] = {d: devices.count(d) for d in sorted(set(devices))}
    with torch.inference_mode():
        out["prefill"] = max(prefill(model, width) for width in (8, 32))
        out["decode"] = {n: decode(model, n) for n in (1, 16, 64)}
    return out


def main():
    transformers.logging.set_verbosity_error()
    report = {"transformers": transformers.__version__, "torch": torch.__version__, "models": {}}
    for folder in sys.argv[2:]:
        name = pathlib.Path(folder).name
        report["models"][name] = measure(folder)
        print(name, json.dumps(report["models"][name]), flush=True)
        torch.cuda.empty_cache()
    pathlib.Path(sys.argv[1]).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
