#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What plans predicted beside what their runs took: a folder's GROUP.LABEL.plan.json, .bench.json.

usage: summary.py FOLDER

Plans of a group have one workload. What misses a bar is named, and the exit code is 1:
  order   of two plans of a group that are predicted over 3 % apart, the better one is faster
  memory  of a device: predicted by no byte too little, and too much by at most 1 % or 64 MiB
  times   of whole runs and of single stages, each kind of them: predicted to 3 % in the median, to
          8 % at worst
  gain    of our plan over so many GPUs in prefill against one GPU (BARS)
Where devices share a GPU their times say little: only their memory is asked for.
"""

import collections
import json
import pathlib
import statistics
import sys

APART, MARGIN, SHARE = 1.03, 64 << 20, 0.01
MEDIAN, WORST = 0.03, 0.08  # of times
BARS = {2: 1.85, 4: 3.5, 8: 6.8}  # prefill of our plan on so many GPUs against one GPU's
HEAD = ("plan", "prefill", "error", "round", "error", "a batch", "error", "prefill tok/s",
        "decode tok/s", "memory over")  # fmt: skip
Run = collections.namedtuple("Run", "group label plan bench")


def load(folder):
    groups = collections.defaultdict(list)
    for path in sorted(folder.glob("*.bench.json")):
        group, label = path.name[: -len(".bench.json")].rsplit(".", 1)
        plan = json.loads((folder / f"{group}.{label}.plan.json").read_text())
        groups[group].append(Run(group, label, plan, json.loads(path.read_text())))
    return groups


def line(run, what):
    return next(x for x in run.bench["lines"] if x["what"] == what)


def batch_of(run, which):
    rounds = max(run.bench["generate"] - 1, 0)
    return line(run, "prefill")[which] + rounds * line(run, "decode, a token of all")[which]


def off(predicted, measured):
    return f"{100 * (predicted / measured - 1):+.1f} %" if predicted and measured else "-"


def totals(run):
    return [x for x in run.bench["lines"] if x["unit"] == "bytes" and x["what"].endswith(" total")]


def memory_misses(run):
    for x in totals(run):
        over = x["predicted"] - x["measured"]
        if over < 0 or over > max(MARGIN, SHARE * x["measured"]):
            yield f"{run.group} {run.label}: {x['what']}: {over / (1 << 20):+.2f} MiB"


def shares_a_gpu(run):
    uuids = [d.get("uuid") or d["name"] for d in run.plan["devices"]]
    return len(set(uuids)) < len(uuids)


def order_misses(runs):
    runs = [r for r in runs if not shares_a_gpu(r)]
    for a in runs:
        for b in runs:
            said = batch_of(b, "predicted") / batch_of(a, "predicted")
            if said > APART and batch_of(b, "measured") <= batch_of(a, "measured"):
                ahead = f"{a.label} before {b.label} by {100 * said - 100:.1f} %"
                yield f"{a.group}: {ahead}, it was not"


def time_errors(groups):
    """(run, line) of whole runs and of single stages, by kind."""
    kinds = {"whole": [], "stage": []}
    for r in (r for runs in groups.values() for r in runs if not shares_a_gpu(r)):
        for x in r.bench["lines"]:
            if x["unit"] != "bytes" and "error" in x:
                kinds["stage" if x["what"].startswith("stage ") else "whole"].append((r, x))
    return kinds


def time_misses(kind, errors):
    """Prints how far off the times of a kind are, and names those that are too far off."""
    sizes = [abs(x["error"]) for _, x in errors]
    median = statistics.median(sizes)
    print(
        f"{len(sizes)} {kind} times of devices alone on their GPU: error {100 * median:.1f} % in "
        f"the median, {100 * max(sizes):.1f} % worst"
    )
    if median > MEDIAN:
        yield f"{kind} times: {100 * median:.1f} % in the median (bar {100 * MEDIAN:.0f} %)"
    for r, x in errors:
        if abs(x["error"]) > WORST:
            off_by = f"{100 * x['error']:+.1f} % (bar {100 * WORST:.0f} %)"
            yield f"{r.group} {r.label}: {x['what']}: {off_by}"


def row(run):
    cells = [run.label + (" (shared GPUs)" if shares_a_gpu(run) else "")]
    for what in ("prefill", "decode, a token of all"):
        x = line(run, what)
        cells += [f"{1e3 * x['measured']:.2f} ms", off(x["predicted"], x["measured"])]
    p, m = batch_of(run, "predicted"), batch_of(run, "measured")
    cells += [f"{1e3 * m:.1f} ms", off(p, m)]
    cells += [f"{run.bench[k]:.0f}" for k in ("prefill_tokens_per_s", "decode_tokens_per_s")]
    over = [(x["predicted"] - x["measured"]) / (1 << 20) for x in totals(run)]
    return [*cells, f"{min(over):.2f} to {max(over):.2f} MiB"]


def print_table(head, rows):
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    for r in [head, ["-" * w for w in widths], *rows]:
        cells = [r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:]))]
        print("  ".join(cells).rstrip())


def gains(runs):
    """(run, how much faster than one GPU's its prefill is, the bar or None)"""
    one = next((r for r in runs if r.label == "one-gpu"), None)
    for r in runs if one else []:
        gpus = len({s["device"] for s in r.plan["stages"]})
        asked = r.label.startswith("ours") and not shares_a_gpu(r)
        gain = line(one, "prefill")["measured"] / line(r, "prefill")["measured"]
        yield r, gain, BARS.get(gpus) if asked else None


def gain_misses(runs):
    for r, gain, bar in gains(runs):
        if bar and gain < bar:
            yield f"{r.group} {r.label}: prefill {gain:.2f} times one GPU's (bar {bar})"


def print_group(name, runs):
    b = runs[0].bench
    print(
        f"\n{name}: batch {b['batch']}, prompt {b['prompt']}, pictures {b['images']} x "
        f"{b['image_tokens']}, generate {b['generate']}; measured, predicted over measured"
    )
    print_table(HEAD, [row(r) for r in runs])
    for r, gain, bar in gains(runs):
        stages = f"{len(r.plan['stages'])} stages" + (f" (bar {bar})" if bar else "")
        print(f"{r.label}: prefill {gain:.2f} times one GPU's, {stages}")


def find(groups, name, label="ours"):
    return next((r for r in groups.get(name, []) if r.label == label), None)


def print_beside(groups, folder):
    """transformers with accelerate's balanced map, where it was measured."""
    path, rows = folder / "transformers.json", []
    if not path.exists():
        return
    report = json.loads(path.read_text())
    for name, theirs in report["models"].items():
        run = find(groups, f"{name}-load")
        speeds = [("prefill 64 x 512", run, "prefill_tokens_per_s", theirs["prefill"])]
        for n, speed in theirs["decode"].items():
            few = find(groups, f"{name}-decode-{n}") or (run if n == "64" else None)
            speeds.append((f"decode, {n} sequences", few, "decode_tokens_per_s", speed))
        for what, ours, key, speed in speeds:
            we = ours.bench[key] if ours else 0
            rows.append([name, what, f"{we:.0f}" if we else "-", f"{speed:.0f}",
                         f"{we / speed:.1f}" if we else "-"])  # fmt: skip
    print(f"\ntransformers {report['transformers']}, torch {report['torch']}, balanced; tokens/s")
    print_table(("model", "what", "Evenkeel", "transformers", "ours / theirs"), rows)


def main():
    folder = pathlib.Path(sys.argv[1])
    groups = load(folder)
    misses = []
    for name, runs in groups.items():
        print_group(name, runs)
        misses += [*order_misses(runs), *gain_misses(runs)]
        for r in runs:
            misses += memory_misses(r)
    print_beside(groups, folder)
    print()
    for kind, errors in time_errors(groups).items():
        misses += time_misses(kind, errors) if errors else []
    print("\n".join(f"MISSED: {m}" for m in misses) or "order, memory, times and gains are good")
    return 1 if misses or not groups else 0


if __name__ == "__main__":
    sys.exit(main())
