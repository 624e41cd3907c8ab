#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds our token ids against Hugging Face `tokenizers` on real vocabularies.

    compare_tokenizers.py --tokenize build/tests/model/tokenize [--strings 4000] [--seed 1] PATH...

PATH is a directory with tokenizer.json (and tokenizer_config.json), a tokenizer.json, or a .gguf
whose reference tokenizer is rebuilt from its own tokens and merges. Compared for each: ids of the
test text, of random strings and of slices of the test text, with special tokens parsed; decoded
text; ids of rendered chats (the checkpoint's own Jinja template, or the stated prompt of
DeepSeek-VL2's processor). A tokenizer.json is also rewritten as a GGUF and read back through our
GGUF reader, where the `gguf` package is present. Prints a Markdown report; exits 1 on a difference.

The reference is `tokenizers.Tokenizer.from_file`, never AutoTokenizer: transformers 5 turns
DeepSeek's class name LlamaTokenizerFast into a Metaspace tokenizer, and spaces vanish.
"""

import argparse
import datetime
import hashlib
import json
import pathlib
import platform
import random
import subprocess
import sys
import tempfile
import unicodedata

import jinja2
import jinja2.sandbox
import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

TEXT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "tokenizers" / "text.txt"
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def records(items):
    """The driver's input: length, newline, bytes."""
    return b"".join(b"%d\n%s" % (len(i), i) for i in items)


def drive(tool, mode, path, items):
    run = subprocess.run([tool, mode, str(path)], input=records(items), capture_output=True)
    if run.returncode:
        sys.exit(f"{path}: {run.stderr.decode().strip()}")
    return run.stdout


def our_ids(tool, mode, path, items):
    lines = drive(tool, mode, path, items).decode().split("\n")[:-1]
    return [[int(i) for i in line.split()] for line in lines]


def our_texts(tool, path, id_lists):
    out = drive(tool, "decode", path, [" ".join(map(str, ids)).encode() for ids in id_lists])
    texts, at = [], 0
    while at < len(out):
        end = out.index(b"\n", at)
        n = int(out[at:end])
        texts.append(out[end + 1 : end + 1 + n].decode())
        at = end + 1 + n
    return texts


# ---- Strings

SCRIPTS = [(0x20, 0x7E)] * 6 + [
    (0xA0, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x3FF),
    (0x400, 0x52F),
    (0x590, 0x5FF),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x1100, 0x11FF),
    (0x1E00, 0x1EFF),
    (0x2000, 0x206F),
    (0x2070, 0x218F),
    (0x2190, 0x2BFF),
    (0x3000, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xF900, 0xFAFF),
    (0xFB00, 0xFB4F),
    (0xFF00, 0xFFEF),
    (0x1D400, 0x1D7FF),
    (0x1F300, 0x1FAFF),
    (0x20000, 0x2A6DF),
    (0xE0000, 0xE007F),
]
SPACES = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u200b", " \n "]
BITS = [
    "'s",
    "'LL",
    "'Re",
    "don't",
    "I'M",
    "123456",
    "3.14159",
    "٣٤٥",
    "½",
    "Ⅷ",
    "```python\n",
    "x += 1;\n",
    "    return",
    "\u200d",
    "\ufe0f",
    "\u1160",
    "e\u0301",
    "\u00c5",
    "\u212b",
    "\uac00\u11a8",
    "<|im_start|>",
    "<|endoftext|>",
    "<｜User｜>",
    "<｜end▁of▁sentence｜>",
    "<image>",
    "<|eot_id|>",
    "ø",
    "ÿ",
    "À",
    "</s>",
    "<|",
    "|>",
    "http://a.b/c?d=e&f=1#g",
]


def assigned(code, version="14.0.0"):
    """Assigned in Unicode 14, the tables of Debian 12's libraries, as far as Python can tell."""
    return unicodedata.category(chr(code)) not in ("Cn", "Cs")


def random_strings(rng, n, text):
    out = []
    while len(out) < n:
        kind = rng.random()
        if kind < 0.25:
            start = rng.randrange(len(text))
            out.append(text[start : start + rng.randrange(1, 400)])
            continue
        parts = []
        for _ in range(rng.randrange(1, 30)):
            pick = rng.random()
            if pick < 0.2:
                parts.append(rng.choice(SPACES))
            elif pick < 0.35:
                parts.append(rng.choice(BITS))
            else:
                low, high = rng.choice(SCRIPTS) if kind < 0.8 else (0, 0x2FFFF)
                codes = [rng.randrange(low, high + 1) for _ in range(rng.randrange(1, 8))]
                parts.append("".join(chr(c) for c in codes if assigned(c)))
        out.append("".join(parts))
    return out


def code_points(tool, path, tok):
    """Every character in a context that shows its class; how many differ, by age."""
    codes = [c for c in (*range(1, 0xD800), *range(0xE000, 0x32000), *range(0xE0000, 0xE0200))]
    strings = [f"a {chr(c)}{chr(c)}e1 {chr(c)} " for c in codes]
    theirs = [e.ids for e in tok.encode_batch(strings, add_special_tokens=False)]
    ours = our_ids(tool, "encode", path, [s.encode() for s in strings])
    bad = [c for c, a, b in zip(codes, ours, theirs) if a != b]
    old = [c for c in bad if unicodedata.category(chr(c)) != "Cn"]
    if old:
        print(f"{path}: {[hex(c) for c in old[:20]]}", file=sys.stderr)
    return old, len(bad) - len(old), len(codes)


# ---- References


def gguf_reference(path):
    """The tokenizer that Hugging Face would have had for a GGUF's tokens and merges."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    get = lambda key: (
        fields["tokenizer." + key].contents() if "tokenizer." + key in fields else None
    )
    tokens, types, pre = get("ggml.tokens"), get("ggml.token_type"), get("ggml.pre")
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = [tuple(m.split(" ")) for m in get("ggml.merges")]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in ("smollm", "gpt-2"))
    steps = [byte]
    if pre == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), byte]
    elif pre == "qwen2":
        tok.normalizer = normalizers.NFC()
        steps = [pre_tokenizers.Split(tokenizers.Regex(QWEN), "isolated"), byte]
    elif pre != "gpt-2":
        sys.exit(f"{path}: no reference is known here for tokenizer.ggml.pre {pre}")
    tok.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tok.decoder = decoders.ByteLevel()
    added = [
        AddedToken(t, special=k == 3, normalized=False)
        for t, k in zip(tokens, types)
        if k in (3, 4)
    ]
    tok.add_special_tokens([a for a in added if a.special])
    tok.add_tokens([a for a in added if not a.special])
    bos, eos = (get(f"ggml.{k}_token_id") for k in ("bos", "eos"))
    return tok, {
        "chat_template": get("chat_template"),
        "bos_token": tokens[bos] if bos is not None else None,
        "eos_token": tokens[eos] if eos is not None else None,
    }


def json_reference(path):
    path = pathlib.Path(path)
    folder = path if path.is_dir() else path.parent
    tok = Tokenizer.from_file(str(folder / "tokenizer.json" if path.is_dir() else path))
    tok.no_padding()
    tok.no_truncation()
    config = folder / "tokenizer_config.json"
    config = json.loads(config.read_text()) if config.exists() else {}
    if (folder / "chat_template.jinja").exists():
        config["chat_template"] = (folder / "chat_template.jinja").read_text()
    return tok, config


def write_gguf(tok, config, pre, path):
    """tokenizer.json's vocabulary as GGUF metadata, as llama.cpp's converter lays it out."""
    import gguf

    spec = json.loads(tok.to_str())
    added = {a["id"]: a for a in spec["added_tokens"]}
    tokens = [""] * tok.get_vocab_size(with_added_tokens=True)
    for text, i in spec["model"]["vocab"].items():
        tokens[i] = text
    types = [1] * len(tokens)
    for i, a in added.items():
        tokens[i], types[i] = a["content"], 3 if a["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    out = gguf.GGUFWriter(path, "llama")
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types(types)
    out.add_token_merges(merges)
    for add, key in ((out.add_bos_token_id, "bos_token"), (out.add_eos_token_id, "eos_token")):
        token = tok.token_to_id(text_of(config.get(key)) or "")
        if token is not None:
            add(token)
    if isinstance(config.get("chat_template"), str):
        out.add_chat_template(config["chat_template"])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def pre_name(tok):
    """tokenizer.ggml.pre of a tokenizer.json, or None."""
    steps = json.loads(tok.to_str())["pre_tokenizer"]
    text = json.dumps(steps, ensure_ascii=False)
    for name, mark in (
        ("deepseek-v3", '\\\\p{N}{1,3}"}, "beha'),
        ("llama-bpe", "\\\\p{N}{1,3}|"),
        ("qwen2", "|\\\\p{N}|"),
        ("deepseek-llm", "一-龥ࠀ-一"),
    ):
        if mark in text:
            return name
    return None


# ---- Chats

CHATS = [
    [("user", "Hello!")],
    [("user", "  What is 2+2?\n")],
    [("system", "You are terse."), ("user", "Name three colours.")],
    [
        ("user", "Hi"),
        ("assistant", "Hello, how can I help?"),
        ("user", "Écris un poème 😀\n\n1. un"),
    ],
    [("system", " Be kind. \n"), ("user", "\n\nA"), ("assistant", "B\n"), ("user", "C")],
]


def vl2_ids(tok, chat, config):
    """DeepSeek-VL2's processor (format_messages_v2), for conversations without images."""
    enc = lambda s: tok.encode(s, add_special_tokens=False).ids
    ids = enc("<｜begin▁of▁sentence｜>")
    for role, content in chat:
        if role == "user":
            ids += enc(f"<|User|>: {content.strip()}\n\n<|Assistant|>:")
        elif role == "assistant":
            ids += enc(content.strip()) + enc("<｜end▁of▁sentence｜>")
        else:
            ids += enc(content.strip())
    return ids


def text_of(token):
    return token["content"] if isinstance(token, dict) else token


def rendered_ids(tok, chat, config):
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    text = env.from_string(config["chat_template"]).render(
        messages=[{"role": r, "content": c} for r, c in chat],
        add_generation_prompt=True,
        bos_token=text_of(config.get("bos_token")),
        eos_token=text_of(config.get("eos_token")),
    )
    return tok.encode(text, add_special_tokens=False).ids


def compare_chats(tool, path, tok, config):
    if tok.token_to_id("<|grounding|>") is not None:
        reference = vl2_ids
    elif isinstance(config.get("chat_template"), str):
        reference = rendered_ids
    else:
        return "no template"
    body = [json.dumps([{"role": r, "content": c} for r, c in chat]).encode() for chat in CHATS]
    probe = subprocess.run([tool, "chat", str(path)], input=records(body[:1]), capture_output=True)
    if probe.returncode:
        return "not supported"
    ours = our_ids(tool, "chat", path, body)
    theirs = [reference(tok, chat, config) for chat in CHATS]
    bad = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    for i in bad[:2]:
        print(f"chat {i}: ours {ours[i]}\n  theirs {theirs[i]}", file=sys.stderr)
    return f"{len(CHATS) - len(bad)}/{len(CHATS)}"


# ---- One vocabulary


def digest(path):
    """Of the file that holds the vocabulary, shortened."""
    path = pathlib.Path(path)
    data = (path / "tokenizer.json" if path.is_dir() else path).read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]


def compare(tool, path, label, tok, config, strings, source=None):
    theirs = [e.ids for e in tok.encode_batch(strings, add_special_tokens=False)]
    ours = our_ids(tool, "encode", path, [s.encode() for s in strings])
    bad = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    for i in bad[:5]:
        print(
            f"{label}: {strings[i]!r}\n  ours   {[tok.id_to_token(t) for t in ours[i]]}\n"
            f"  theirs {[tok.id_to_token(t) for t in theirs[i]]}",
            file=sys.stderr,
        )
    # Added tokens decode to their own text here; the library sends them through the byte-level
    # alphabet, which turns DeepSeek LLM's added "ü" into an ill-formed byte. NUL is U+FFFD here.
    odd = {i for i, a in tok.get_added_tokens_decoder().items() if len(a.content) == 1}
    plain = [ids for ids in theirs if not odd & set(ids)]
    texts = our_texts(tool, path, plain)
    wrong = [
        i
        for i, (a, ids) in enumerate(zip(texts, plain))
        if a != tok.decode(ids, skip_special_tokens=False).replace("\0", "\ufffd")
    ]
    for i in wrong[:3]:
        print(f"{label}: decoded {texts[i]!r}\n  theirs {tok.decode(plain[i])!r}", file=sys.stderr)
    n = sum(map(len, theirs))
    chats = compare_chats(tool, path, tok, config)
    print(
        f"| {label} | {tok.get_vocab_size()} | {len(strings) - len(bad)}/{len(strings)} | {n} | "
        f"{len(plain) - len(wrong)}/{len(plain)} | {chats} | "
        f"{'–' if source is None else digest(source)} |",
        flush=True,
    )
    total = len(CHATS)
    return not bad and not wrong and ("/" not in chats or chats == f"{total}/{total}")


def report_code_points(args):
    print(
        "| vocabulary | characters | differ, assigned by Unicode "
        f"{unicodedata.unidata_version} | differ, assigned later or never |"
    )
    print("| --- | --- | --- | --- |", flush=True)
    good = True
    for path in args.paths:
        tok, _ = (gguf_reference if path.endswith(".gguf") else json_reference)(path)
        old, new, n = code_points(args.tokenize, path, tok)
        print(f"| {pathlib.Path(path).name} | {n} | {len(old)} | {new} |", flush=True)
        good &= not old
    return 0 if good else 1


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--tokenize", required=True)
    args.add_argument("--strings", type=int, default=4000)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument(
        "--code-points",
        action="store_true",
        help="instead: every character, in a context that shows its class",
    )
    args.add_argument("paths", nargs="+")
    args = args.parse_args()
    if args.code_points:
        sys.exit(report_code_points(args))
    text = TEXT.read_bytes().decode("utf-8", "replace")
    strings = (
        [text] + text.split("\n") + random_strings(random.Random(args.seed), args.strings, text)
    )
    print(
        f"Made {datetime.date.today()} by `{pathlib.Path(__file__).name} --strings "
        f"{args.strings} --seed {args.seed}`; tokenizers {tokenizers.__version__}, "
        f"Python {platform.python_version()} (Unicode {unicodedata.unidata_version}).\n"
    )
    print(
        "| vocabulary | tokens | strings with equal ids | ids compared | equal decoded text | "
        "equal chats | sha256 |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    good = True
    for path in args.paths:
        name = pathlib.Path(path).name
        if path.endswith(".gguf"):
            good &= compare(args.tokenize, path, name, *gguf_reference(path), strings, path)
            continue
        tok, config = json_reference(path)
        good &= compare(args.tokenize, path, name, tok, config, strings, path)
        if pre_name(tok):
            with tempfile.TemporaryDirectory() as folder:
                out = pathlib.Path(folder) / "vocabulary.gguf"
                write_gguf(tok, config, pre_name(tok), out)
                label = f"{name}, through GGUF ({pre_name(tok)})"
                good &= compare(args.tokenize, out, label, tok, config, strings)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
