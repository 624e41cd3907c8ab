# SPDX-License-Identifier: Apache-2.0
"""Hold every committed reference against our own fp64 implementation, written from the published
descriptions: two implementations that share no code must agree before a third is judged by them."""

import json
import sys

import torch
from safetensors import safe_open

import own_deepseek
import own_qwen25vl
import own_text
import own_vl2
from common import FIXTURES, assert_pillow

# Each takes the folder, the ids and the reference's tensors (for its images).
OWN = {
    "llama": lambda folder, ids, _: own_text.text_logits(folder, ids),
    "qwen2": lambda folder, ids, _: own_text.text_logits(folder, ids),
    "deepseek_v2": lambda folder, ids, _: own_deepseek.text_logits(folder, ids),
    "deepseek_vl_v2": own_vl2.logits,
    "qwen2_5_vl": own_qwen25vl.logits,
}


def read(file):
    with safe_open(file, "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}


def departures(trace, logits, reference):
    """(module, max |difference| / max |value|) of every traced module, then of the logits."""
    for name, value in trace.items():
        if "trace." + name in reference:
            expected = reference["trace." + name].double()
            yield name, float(
                (value.reshape(expected.shape) - expected).abs().max() / expected.abs().max()
            )
    expected = reference["logits"].double()
    yield "logits", float((logits - expected).abs().max() / expected.abs().max())


def check(folder, file="reference.safetensors"):
    family = json.loads((folder / "config.json").read_text())["model_type"]
    reference = read(folder / file)
    logits, trace = OWN[family](folder, reference["input_ids"].tolist(), reference)
    traced = sum(k.startswith("trace.") for k in reference)
    found = dict(departures(trace, logits, reference))
    if len(found) != traced + 1:
        raise SystemExit(f"{folder.name}: {traced} traced modules, {len(found) - 1} of ours")
    worst = max(found, key=found.get)
    ok = found[worst] < 1e-5
    same = (logits.argmax(-1) == reference["logits"].argmax(-1)).double().mean()
    print(
        f"{'ok  ' if ok else 'FAIL'} {folder.name:20} {len(found):3} tensors, worst "
        f"{found[worst]:.1e} ({worst}), logits {found['logits']:.1e}, top-1 equal {same:.3f}"
    )
    if not ok:
        print("     " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()))
    return ok


if __name__ == "__main__":
    assert_pillow()
    torch.set_num_threads(1)
    names = sys.argv[1:] or sorted(p.parent.name for p in FIXTURES.glob("*/config.json"))
    results = [check(FIXTURES / n) for n in names]
    results += [
        check(FIXTURES / n, "reference-video.safetensors")
        for n in names
        if (FIXTURES / n / "reference-video.safetensors").exists()
    ]
    sys.exit(0 if all(results) else 1)
