#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clients of `evenkeel serve`: answers beside those of `run`, and tokens a second.

usage: serve.py [--chat] [--picture FILE ...] EVENKEEL MODEL SEQUENCES TOKENS [OPTION ...]

OPTIONs are of both, as --devices cuda:0. Greedy. Speed: 1 client (twice: the first one captures
graphs), 4, half as many as sequences, as many, twice as many, each count twice. Then prompts that
begin alike, several answers to each, tokens chosen on the host, a stream, a stop string, chats
(--chat: the model has a template), pictures, clients that leave in the middle, an end while clients
are served. Exit code 1 when an answer differs or a check fails: in BF16 that may be a near tie,
since products with another number of tokens add in another order.
"""

import argparse
import base64
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

PROMPTS = ["The sea was calm, and the ship", "Once upon a time there was", "In the year 2031",
           "A list of colours: red,"]  # fmt: skip
WORK = [f"evenkeel:num_requests_{w}" for w in ("running", "waiting")]
failed = 0


def check(ok, what):
    global failed
    failed += not ok
    print(f"{'ok' if ok else 'FAILED'}: {what}", flush=True)


class Server:
    def __init__(self, args):
        start = time.time()
        options = args.options
        if "--plan" not in options:
            options = [*options, "--batch", str(args.sequences), "--context", "1024"]
        command = [args.evenkeel, "serve", args.model, "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        print(f"ready after {time.time() - start:.2f} s")

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def post(self, connection, path, body):
        connection.request("POST", "/v1/" + path, json.dumps({"temperature": 0} | body))
        return connection.getresponse()

    def ask(self, path, body):
        connection = self.connect()
        answer = json.loads(self.post(connection, path, body).read())
        connection.close()
        return answer

    def complete(self, prompt, tokens, **more):
        return self.ask("completions", {"prompt": prompt, "max_tokens": tokens} | more)

    def running(self):
        connection = self.connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return {k: float(v) for k, v in (x.split() for x in text.splitlines() if x[:1] != "#")}

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def text_of(answer):
    if "choices" not in answer:
        return answer
    choice = answer["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def pieces(response):
    """The texts of a stream's events, and whether it ended with [DONE]."""
    texts = []
    for line in response:
        data = line.decode().strip().removeprefix("data: ")
        if data == "[DONE]":
            return texts, True
        if data.startswith("{") and "choices" in json.loads(data):
            choice = json.loads(data)["choices"][0]
            texts.append(choice["text"] if "text" in choice else choice["delta"]["content"])
    return texts, False


def run_alone(args, prompt, *more):
    command = [args.evenkeel, "run", args.model, "--prompt", prompt, "--max-tokens",
               str(args.tokens), "--json", "--quiet", *more, *args.options]  # fmt: skip
    out = subprocess.run(command, capture_output=True, check=True)
    return json.loads(out.stdout)["completions"][0]["text"]


def beside(answers, want):
    """Whether all are what is wanted of them, and a line that says it."""
    pairs = [(text_of(a), want[i % len(want)]) for i, a in enumerate(answers)]
    equal = sum(a == w for a, w in pairs)
    said = f"equal to run: {equal} of {len(pairs)}"
    if equal < len(pairs):
        least = min(len(os.path.commonprefix(p)) for p in pairs if p[0] != p[1])
        said += f", the others at least for {least} characters"
    return equal == len(pairs), said


def clients(n, asked):
    """Calls asked(i) at once for n clients: seconds, and the answers."""
    answers = [None] * n

    def one(i):
        answers[i] = asked(i)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    start = time.time()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return time.time() - start, answers


def speed(server, args, want):
    counts = [1, 4, max(args.sequences // 2, 1), args.sequences, 2 * args.sequences]
    for n in [n for n in sorted(set(counts)) for _ in range(2)]:
        took, answers = clients(
            n, lambda i: server.complete(PROMPTS[i % len(PROMPTS)], args.tokens))
        made = sum(a["usage"]["completion_tokens"] for a in answers)
        ok, said = beside(answers, want)
        check(ok, f"{n} clients: {made} tokens in {took:.3f} s, {made / took:.0f} tokens/s; {said}")


def alike(server, args):
    """Prompts of one beginning, at once: three answers to each, then one, chosen on the host."""
    head = " ".join(PROMPTS * 6)
    prompts = [f"{head} {p}" for p in PROMPTS]
    want = [run_alone(args, p, "--raw") for p in prompts]
    ways = [{"n": 3}, {"presence_penalty": 0.0, "logit_bias": {"1": 0.0}}]
    for more in ways:
        before = server.running()
        _, answers = clients(
            len(prompts), lambda i: server.complete(prompts[i], args.tokens, **more))
        single = [[{"choices": [c]} for c in a["choices"]] for a in answers]
        n = len(single[0])
        ok, said = beside([c[k] for k in range(n) for c in single], want)
        after = server.running()
        of, new = (after[f"evenkeel:{k}_total"] - before[f"evenkeel:{k}_total"]
                   for k in ("prefix_cache_hits", "prompt_tokens"))
        check(ok and of > 0, f"prompts that begin alike, {more}: {of:.0f} of {new:.0f} tokens of "
              f"theirs were there; {said}")  # fmt: skip


def streams(server, args, want):
    """One client alone."""
    body = {"prompt": PROMPTS[0], "max_tokens": args.tokens, "stream": True}
    connection = server.connect()
    texts, done = pieces(server.post(connection, "completions", body))
    same = done and "".join(texts) == want[0]
    check(same, f"a stream of {len(texts)} events is the answer of run")
    whole = text_of(server.complete(PROMPTS[0], args.tokens))
    middle = whole[len(whole) // 2 :][:3]
    short = text_of(server.complete(PROMPTS[0], args.tokens, stop=[middle]))
    check(short == whole[: whole.index(middle)], f"an answer ends before {middle!r}")


def chats(server, args):
    want = [run_alone(args, p) for p in PROMPTS]
    said = [{"messages": [{"role": "user", "content": p}]} for p in PROMPTS]
    ask = [s | {"max_tokens": args.tokens} for s in said]
    _, answers = clients(len(ask), lambda i: server.ask("chat/completions", ask[i]))
    ok, said = beside(answers, want)
    check(ok, f"chats: {said}")
    connection = server.connect()
    texts, done = pieces(server.post(connection, "chat/completions", ask[0] | {"stream": True}))
    check(done and "".join(texts) == want[0], "a chat's stream is the answer of run")


def picture_part(path):
    kind = "png" if path.endswith("png") else "jpeg"
    data = base64.b64encode(pathlib.Path(path).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}


def pictures(server, args):
    """One picture each, then all of the first two: text behind them, as run has it."""
    sets = [[p] for p in args.picture] + [args.picture[:2]]
    want = [run_alone(args, PROMPTS[0], *(x for p in s for x in ("--image", p))) for s in sets]

    def ask(i):
        content = [*map(picture_part, sets[i % len(sets)]), {"type": "text", "text": PROMPTS[0]}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": args.tokens}
        return server.ask("chat/completions", body)

    _, answers = clients(3 * len(sets), ask)
    ok, said = beside(answers, want)
    check(ok, f"pictures: {len(set(want))} answers, {said}")


def leaving(server, args, want):
    """Twice as many as there are sequences leave long answers; who comes then is answered."""
    left = []
    for i in range(2 * args.sequences):
        connection = server.connect()
        body = {"prompt": PROMPTS[i % len(PROMPTS)], "max_tokens": 900, "temperature": 0}
        connection.request("POST", "/v1/completions", json.dumps(body | {"stream": True}))
        left.append(connection)
    left[0].getresponse().readline()
    busy = server.running()
    for connection in left:
        connection.close()
    start = time.time()
    equal = text_of(server.complete(PROMPTS[0], args.tokens)) == want[0]
    took = time.time() - start
    until = time.time() + 2
    while any((idle := server.running())[k] for k in WORK) and time.time() < until:
        time.sleep(0.01)
    shown, still = ([int(now[k]) for k in WORK] for now in (busy, idle))
    check(equal and sum(shown) >= args.sequences and not any(still),
          f"{len(left)} clients left ({shown} ran, waited), the next was answered in {took:.3f} s")


def end(server, args):
    connection = server.connect()
    body = {"prompt": PROMPTS[0], "max_tokens": 900, "stream": True, "ignore_eos": True}
    response = server.post(connection, "completions", body)
    response.readline()
    start = time.time()
    code = server.stop()
    try:
        _, done = pieces(response)
    except (OSError, http.client.HTTPException) as fault:
        done = f"cut off: {fault!r}"
    took = time.time() - start
    check(code == 0 and done is False,
          f"SIGTERM while a stream runs: exit {code} after {took:.2f} s, [DONE]: {done}")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    p.add_argument("--chat", action="store_true", help="the model has a chat template")
    p.add_argument("--picture", action="append", default=[], help="a PNG or JPEG for the model")
    p.add_argument("evenkeel")
    p.add_argument("model")
    p.add_argument("sequences", type=int)
    p.add_argument("tokens", type=int)
    p.add_argument("options", nargs=argparse.REMAINDER)
    args = p.parse_args()
    want = [run_alone(args, prompt, "--raw") for prompt in PROMPTS]
    server = Server(args)
    speed(server, args, want)
    alike(server, args)
    streams(server, args, want)
    if args.chat:
        chats(server, args)
    if args.picture:
        pictures(server, args)
    leaving(server, args, want)
    end(server, args)
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
