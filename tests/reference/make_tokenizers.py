#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/fixtures/tokenizers: small vocabularies trained for the test, with the real
normalisers, pre-tokenizers, decoders, post-processors and added tokens of each family, and what
Hugging Face `tokenizers` makes of the test texts.

    make_tokenizers.py [--check NAME=tokenizer.json ...]

Needs tokenizers, jinja2 and gguf. Every folder NAME has tokenizer.json, tokenizer_config.json, the
same as tokenizer.gguf (but for `odd`), and as lines of numbers
  ids       the ids of each line of text.txt, of the whole of it, of each string of extra.json and
            of each line of invalid.hex (ill-formed UTF-8, repaired as Python and Rust do)
  chat      the ids of each conversation of chats.json, rendered by the template in Jinja
  gguf.chat the same for the template in tokenizer.gguf, where that is another one
With --check the definitions (normaliser, pre-tokenizer, decoder) are held against a real file.
"""

import argparse
import json
import pathlib
import sys

import gguf
import jinja2
import jinja2.sandbox
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "tests" / "fixtures" / "tokenizers"
VOCABULARY = 1400

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
V3 = [
    "\\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
# cased letters, first and last in hex
CASED = """41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386
388-38a 38c 38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba
1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b
1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4
1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 213c-213f
2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f
a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3
104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943"""
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"


def cased():
    ranges = [r.split("-") for r in CASED.split()]
    return "".join("-".join(chr(int(c, 16)) for c in r) for r in ranges)


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def llm_splits():
    punctuation = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
    return [
        split("[\r\n]"),
        split("\\s?[" + cased() + "]+"),
        split("\\s?[" + punctuation + "]+"),
        split("\\s+$"),
        split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
        pre_tokenizers.Digits(individual_digits=True),
        byte_level(False),
    ]


# ---- Chat templates: what the families' own render for plain conversations


def chatml(system):
    return (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\n" + system + "<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


QWEN_CHAT = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful \
assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != "system" or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3_TURN = (
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}" + LLAMA3_TURN + "{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
LLAMA31_CHAT = (
    "{% set given = messages[0]['role'] == 'system' %}{{ bos_token }}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{ 'Cutting Knowledge Date: December 2023\n' }}"
    "{{ 'Today Date: ' + '26 Jul 2024' + '\n\n' }}"
    "{% if given %}{{ messages[0]['content'] | trim }}{% endif %}{{ '<|eot_id|>' }}"
    "{% for m in messages[1:] if given %}" + LLAMA3_TURN + "{% endfor %}"
    "{% for m in messages if not given %}" + LLAMA3_TURN + "{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
LLM_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}{% else %}"
    "{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}{{ 'Assistant:' }}"
)
V3_CHAT = (
    "{{ bos_token }}{% for m in messages if m['role'] == 'system' %}"
    "{{ ('' if loop.first else '\n\n') + m['content'] }}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}{{ '<｜Assistant｜>' }}"
)


def rendered(tok, template, config, chat):
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = env.from_string(template).render(
        messages=chat,
        add_generation_prompt=True,
        bos_token=config.get("bos_token"),
        eos_token=config.get("eos_token"),
    )
    return tok.encode(text, add_special_tokens=False).ids


def vl2_chat(tok, chat):
    """DeepSeek-VL2's processor (format_messages_v2): turns are encoded one by one."""
    enc = lambda s: tok.encode(s, add_special_tokens=False).ids
    ids = enc(BOS)
    for m in chat:
        text = m["content"].strip()
        if m["role"] == "user":
            ids += enc(f"<|User|>: {text}\n\n<|Assistant|>:")
        else:
            ids += enc(text) + (enc(EOS) if m["role"] == "assistant" else [])
    return ids


# ---- Families


def special(text, **kw):
    return AddedToken(text, special=True, normalized=kw.pop("normalized", False), **kw)


def plain(text, **kw):
    return AddedToken(text, special=False, normalized=kw.pop("normalized", False), **kw)


def bos_first(tok, text):
    """TemplateProcessing that puts a token first."""
    return processors.TemplateProcessing(
        single=f"{text} $A",
        pair=f"{text} $A {text}:1 $B:1",
        special_tokens=[(text, tok.token_to_id(text))],
    )


SMOLLM = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<jupyter_script>",
    "<empty_output>",
]
QWEN_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN_PLAIN = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
]
VL2 = [
    "<image>",
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "<|grounding|>",
    "<|User|>",
    "<|Assistant|>",
]

FAMILIES = {
    "smollm2": {
        "pre": "smollm",
        "splits": lambda: [pre_tokenizers.Digits(individual_digits=True), byte_level(True)],
        "first": [special(t) for t in SMOLLM],
        "no_bytes": [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 256)],
        "config": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        "chat": chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    },
    "qwen2.5": {
        "pre": "qwen2",
        "splits": lambda: [split(QWEN.replace("DIGITS", r"\p{N}")), byte_level(False)],
        "normalizer": normalizers.NFC(),
        "strings": True,
        "decoder": {"add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "last": [special(t) for t in QWEN_SPECIAL] + [plain(t) for t in QWEN_PLAIN],
        "config": {
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "model_max_length": 131072,
        },
        "chat": QWEN_CHAT,
    },
    "llama3": {
        "pre": "llama-bpe",
        "splits": lambda: [split(QWEN.replace("DIGITS", r"\p{N}{1,3}")), byte_level(False)],
        "ignore_merges": True,
        "bos": "<|begin_of_text|>",
        "last": [
            special(t)
            for t in (
                "<|begin_of_text|>",
                "<|end_of_text|>",
                "<|start_header_id|>",
                "<|end_header_id|>",
                "<|eot_id|>",
            )
        ],
        "config": {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "model_max_length": 10**30,
        },
        "chat": LLAMA3_CHAT,
        "gguf_chat": LLAMA31_CHAT,
    },
    "deepseek-llm": {
        "pre": "deepseek-llm",
        "splits": llm_splits,
        "normalizer": normalizers.Sequence([]),
        "strings": True,
        "no_bytes": [0xC0, 0xC1, *range(0xF5, 256)],
        "last": [special(BOS, normalized=True), special(EOS, normalized=True)]
        + [plain(c, normalized=True) for c in "øöúÿ÷ûýÀùÁþü"],
        "config": {
            "add_bos_token": True,
            "bos_token": {"__type": "AddedToken", "content": BOS},
            "eos_token": {"__type": "AddedToken", "content": EOS},
        },
        "chat": LLM_CHAT,
    },
    "deepseek-v3": {
        "pre": "deepseek-v3",
        "splits": lambda: [split(p) for p in V3] + [byte_level(False)],
        "normalizer": normalizers.Sequence([]),
        "strings": True,
        "first": [special(t) for t in (BOS, EOS, PAD)],
        "last": [plain(t, normalized=True) for t in (USER, ASSISTANT, "<｜fim▁hole｜>")],
        "config": {"add_bos_token": True, "bos_token": BOS, "eos_token": EOS},
        "chat": V3_CHAT,
    },
    "deepseek-vl2": {
        "pre": "deepseek-v3",
        "splits": lambda: [split(p) for p in V3] + [byte_level(False)],
        "normalizer": normalizers.Sequence([]),
        "bos": BOS,
        "first": [special(t) for t in (BOS, EOS, PAD)],
        "last": [special(t) for t in VL2],
        "config": {
            "add_bos_token": True,
            "bos_token": BOS,
            "eos_token": EOS,
            "model_max_length": 10**30,
            "chat_template": "{{ 'another model' }}",
        },
        "chat": vl2_chat,
    },
    "gpt2": {
        "pre": "gpt-2",
        "splits": lambda: [byte_level(True)],
        "last": [special("<|endoftext|>", normalized=True)],
        "config": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    },
    # no model's: the options that the others leave alone
    "odd": {
        "splits": lambda: [
            pre_tokenizers.Split("-->", "removed"),
            pre_tokenizers.Split(Regex(r"#[^#]+#|[^#]+"), "removed", invert=True),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True),
        ],
        "normalizer": normalizers.Sequence([normalizers.NFKD(), normalizers.NFC()]),
        "unk": "<unk>",
        "no_bytes": [0xF0, 0xF1],
        "first": [special("<unk>")],
        "last": [
            special("<mask>", lstrip=True),
            plain("<pad>", rstrip=True),
            plain("word", single_word=True),
            plain("caf\u00e9", normalized=True),
            plain("\ufb01n", normalized=True),
            plain("ab"),
            plain("abab"),
            plain("abababc"),
        ],
        "config": {"bos_token": "<s>", "eos_token": None},
    },
}

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
EXTRA = [
    "",
    " ",
    "  ",
    "\n",
    "a",
    " a",
    "\t\n \n",
    "\u0000a\u0001\u0004\u001d\u007f",
    "é",
    "e\u0301",
    "\u1100\u1161\u11a8",
    "\u0f71\u0f72\u0f74",
    "ø÷ÿ À",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|><|endoftext|> x<|endoftext|>",
    BOS + "a" + EOS + USER + "b" + ASSISTANT,
    "<image>\n<|ref|>cat<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>",
    "<|begin_of_text|>x<|eot_id|>",
    "<|im_start",
    "<tool_call>\n{}\n</tool_call>",
    "\U00040000\U000e0041\U0010ffff",
    "a  <mask> b<pad>   c",
    "word words sword word, keyword_word word",
    "cafe\u0301 café cafés",
    "\ufb01nd fin",
    "abababc ababab ababd",
    "a --> b-->#c#-->d##e",
    "x" * 3000,
    " " * 2000,
    "ab" * 1500,
    "1234567890" * 20,
    "\u200d\ufe0f\u20e3",
    "don't DON'T ‘s ’s",
    "\r\r\n\n\r",
]
INVALID = [
    b"\xff",
    b"a\x80b",
    b"\xc3",
    b"\xe2\x82",
    b"\xe2\x82z",
    b"\xf0\x9f\x98",
    b"\xf0\x9f\x98\xf0",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe0\x80\xaf",
    b"ok\xf5 then",
    b"\xf0\x9f\x98\x80\x80",
    b"\xe6\xb7\xb1\xe5\xba",
]


def train(family, corpus):
    tok = Tokenizer(models.BPE(unk_token=family.get("unk")))
    if "normalizer" in family:
        tok.normalizer = family["normalizer"]
    tok.pre_tokenizer = (
        pre_tokenizers.Sequence(family["splits"]())
        if len(family["splits"]()) > 1
        else family["splits"]()[0]
    )
    tok.decoder = decoders.ByteLevel()
    drop = {byte_char(b) for b in family.get("no_bytes", [])}
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=family.get("first", []),
        show_progress=False,
        initial_alphabet=[c for c in pre_tokenizers.ByteLevel.alphabet() if c not in drop],
    )
    tok.train_from_iterator(corpus, trainer)
    return tok


def byte_char(b):
    """The character that stands for byte b in vocabularies."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(b) if b in own else chr(256 + [x for x in range(256) if x not in own].index(b))


def rewrite(tok, family):
    """What the trainer cannot do: missing bytes, tokens that no merge reaches."""
    spec = json.loads(tok.to_str())
    model = spec["model"]
    drop = {byte_char(b) for b in family.get("no_bytes", [])}
    if family.get("ignore_merges"):
        # some tokens keep their id but lose their merge: reachable as whole pieces only
        model["ignore_merges"] = True
        model["merges"] = [m for i, m in enumerate(model["merges"]) if i % 9 != 8]
        known = {m[0] + m[1] for m in model["merges"]}
        keep = lambda part: len(part) == 1 or part in known
        while not all(keep(p) for m in model["merges"] for p in m):
            model["merges"] = [m for m in model["merges"] if all(map(keep, m))]
            known = {m[0] + m[1] for m in model["merges"]}
    if drop:
        gone = {t for t in model["vocab"] if set(t) & drop}
        names = [t for t, _ in sorted(model["vocab"].items(), key=lambda x: x[1]) if t not in gone]
        model["vocab"] = {t: i for i, t in enumerate(names)}
        model["merges"] = [m for m in model["merges"] if not {m[0], m[1], m[0] + m[1]} & gone]
    return Tokenizer.from_str(json.dumps(spec))


def write_json(tok, family, path):
    spec = json.loads(tok.to_str())
    spec["decoder"].update(family.get("decoder", {}))
    if family.get("strings"):
        spec["model"]["merges"] = [
            m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]
        ]
    path.write_text(json.dumps(spec, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_gguf(tok, family, path):
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
    out.add_tokenizer_pre(family["pre"])
    out.add_token_list(tokens)
    out.add_token_types(types)
    out.add_token_merges(merges)
    for add, key in ((out.add_bos_token_id, "bos_token"), (out.add_eos_token_id, "eos_token")):
        value = family["config"].get(key)
        text = value["content"] if isinstance(value, dict) else value
        if text is not None:
            add(tok.token_to_id(text))
    out.add_add_bos_token(bool(family.get("bos") or family["config"].get("add_bos_token")))
    template = family.get("gguf_chat", family.get("chat"))
    if isinstance(template, str):
        out.add_chat_template(template)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_lines(path, lists):
    path.write_text("".join(" ".join(map(str, ids)) + "\n" for ids in lists))


def chat_ids(tok, template, config, chats):
    config = {k: v["content"] if isinstance(v, dict) else v for k, v in config.items()}
    if callable(template):
        return [template(tok, chat) for chat in chats]
    return [rendered(tok, template, config, chat) for chat in chats]


def make(name, family, corpus, texts, chats):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    tok = rewrite(train(family, corpus), family)
    for token in family.get("last", []):
        (tok.add_special_tokens if token.special else tok.add_tokens)([token])
    tok.post_processor = (
        bos_first(tok, family["bos"])
        if family.get("bos")
        else processors.ByteLevel(trim_offsets=False)
    )
    write_json(tok, family, folder / "tokenizer.json")
    config = dict(family["config"])
    if isinstance(family.get("chat"), str):
        config["chat_template"] = family["chat"]
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    )
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    write_lines(folder / "ids", [tok.encode(t, add_special_tokens=False).ids for t in texts])
    if "pre" in family:
        write_gguf(tok, family, folder / "tokenizer.gguf")
    if "chat" in family:
        write_lines(folder / "chat", chat_ids(tok, family["chat"], config, chats))
    if "gguf_chat" in family:
        write_lines(folder / "gguf.chat", chat_ids(tok, family["gguf_chat"], config, chats))
    print(f"{name}: {tok.get_vocab_size()} tokens")


def check(name, path):
    ours = json.loads((OUT / name / "tokenizer.json").read_text())
    real = json.loads(pathlib.Path(path).read_text())
    bad = [
        k
        for k in ("normalizer", "pre_tokenizer", "decoder")
        if meaning(ours[k]) != meaning(real[k])
    ]
    print(f"{name} against {path}: {'differs in ' + ', '.join(bad) if bad else 'the same'}")
    return not bad


def meaning(v):
    """A definition without what has no effect on ids or text."""
    if isinstance(v, list):
        return [meaning(i) for i in v]
    if not isinstance(v, dict):
        return v
    if v.get("type") == "Sequence" and not v.get("normalizers", True):
        return None
    idle = {"trim_offsets"} | (
        {"add_prefix_space", "use_regex"}
        if set(v) <= {"type", "trim_offsets", "add_prefix_space", "use_regex"}
        and v["type"] != "ByteLevel"
        else set()
    )
    return {k: meaning(x) for k, x in v.items() if k not in idle}


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--check", action="append", default=[], metavar="NAME=FILE")
    args = args.parse_args()
    text = (OUT / "text.txt").read_bytes().decode()
    corpus = [text] * 3 + [(ROOT / "COPYING").read_text()]
    chats = [[{"role": r, "content": c} for r, c in chat] for chat in CHATS]
    (OUT / "extra.json").write_text(json.dumps(EXTRA, indent=0) + "\n")
    (OUT / "invalid.hex").write_text("".join(b.hex() + "\n" for b in INVALID))
    (OUT / "chats.json").write_text(json.dumps(chats, indent=1) + "\n")
    texts = text.split("\n") + [text] + EXTRA + [b.decode("utf-8", "replace") for b in INVALID]
    for name, family in FAMILIES.items():
        make(name, family, corpus, texts, chats)
    good = [check(*item.split("=", 1)) for item in args.check]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
