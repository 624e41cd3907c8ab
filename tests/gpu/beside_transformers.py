#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Speed of transformers and of Evenkeel in one run: the same shapes, the same GPU, random weights.

usage: beside_transformers.py EVENKEEL [--no-compile] [NAME ...]     NAMEs of tests/fixtures/configs

transformers decodes eagerly and, where the model has a static cache, compiled; prefill is one
forward pass. Evenkeel is `evenkeel bench` on the same configuration. Decoding is of one sequence
from a context of 512 on. Needs torch, transformers >= 5.17.
"""

import argparse
import json
import pathlib
import subprocess
import time

import torch
import transformers

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "configs"
PROMPT, NEW, LONG = 512, 32, 4096


def make(name, device):
    config = transformers.AutoConfig.from_pretrained(CONFIGS / name)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = getattr(transformers, config.architectures[0])(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def decode(model, **options):
    """Tokens a second behind a prompt of PROMPT, without the prompt's own time."""
    ids = (
        torch.randint(0, 32000, (1, PROMPT), device=model.device)
        % model.get_input_embeddings().num_embeddings
    )

    def generate(n):
        start = time.perf_counter()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            **options,
        )
        synchronize()
        return time.perf_counter() - start

    for _ in range(3 if options else 1):  # compiles for the longest cache, then captures its graphs
        generate(NEW + 1)
    return NEW / (generate(NEW + 1) - generate(1))


def prefill(model, n):
    """Tokens a second of one forward pass over n, the last logits alone."""
    ids = (
        torch.randint(0, 32000, (1, n), device=model.device)
        % model.get_input_embeddings().num_embeddings
    )
    times = []
    for _ in range(4):
        synchronize()
        start = time.perf_counter()
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
        synchronize()
        times.append(time.perf_counter() - start)
    return n / min(times[1:])


def theirs(name, device, compiled):
    model, out = make(name, device), {}
    with torch.inference_mode():
        for n in (PROMPT, LONG):
            out[f"prefill {n}"] = prefill(model, n)
        out["decode"] = decode(model)
        try:
            if compiled:
                out["decode, compiled"] = decode(model, cache_implementation="static")
        except Exception as error:  # a model without a static cache is reported, not fatal
            print(f"{name}: compiled: {str(error).splitlines()[0][:160]}")
    return out


def ours(evenkeel, name, device):
    out = {}
    for n, new in ((PROMPT, 64), (LONG, 8)):
        command = [
            evenkeel,
            "bench",
            str(CONFIGS / name),
            "--devices",
            device,
            "--prompt",
            str(n),
            "--generate",
            str(new),
            "--json",
            "--quiet",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        if done.returncode != 0:
            print(f"{name}: {' '.join(command[1:])}: {done.stderr.strip()}")
            continue
        bench = json.loads(done.stdout)
        out[f"prefill {n}"] = bench["prefill_tokens_per_s"]
        out["decode"] = out.get("decode", bench["decode_tokens_per_s"])
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    p.add_argument("evenkeel", help="the program")
    p.add_argument("names", nargs="*", default=["qwen2.5-vl-3b", "deepseek-v2-lite"])
    p.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes a minute"
    )
    p.add_argument("--device", default="cuda:0")
    args = p.parse_intermixed_args()
    transformers.logging.set_verbosity_error()
    torch.set_float32_matmul_precision("highest")
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, "
        f"{torch.cuda.get_device_name() if 'cuda' in args.device else args.device}"
    )
    for name in args.names:
        mine = ours(args.evenkeel, name, args.device if "cuda" in args.device else "cpu:0")
        other = theirs(name, args.device, not args.no_compile)
        heads = f"{'Evenkeel':>10} {'transformers':>13} {'ours / theirs':>14}"
        print(f"{name:18} {'tokens/s':>18} {heads}")
        for what, speed in other.items():
            we = mine.get(what.split(",")[0], 0)
            print(f"{'':18} {what:>18} {we:10.0f} {speed:13.1f} {we / speed:14.1f}", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
