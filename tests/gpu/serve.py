#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clients of `evenkeel serve`: tokens a second, and whether each is answered what `run` answers.

usage: serve.py EVENKEEL MODEL SEQUENCES TOKENS [OPTION ...]    OPTIONs: of both, as --devices cuda:0

Greedy; 1 client (twice: the first run captures graphs), half as many as sequences, as many, and
twice as many. Exit code 1 when an answer differs: in BF16 that may be a near tie, since products
with another number of tokens add in another order.
"""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time

PROMPTS = ["The sea was calm, and the ship", "Once upon a time there was", "In the year 2031",
           "A list of colours: red,"]


class Server:
    def __init__(self, evenkeel, model, sequences, options):
        start = time.time()
        if "--plan" not in options:
            options = [*options, "--batch", sequences, "--context", "1024"]
        self.process = subprocess.Popen([evenkeel, "serve", model, "--port", "0", *options],
                                        stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        print(f"ready after {time.time() - start:.2f} s")

    def ask(self, prompt, tokens):
        body = json.dumps({"prompt": prompt, "temperature": 0, "max_tokens": tokens})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/v1/completions", body)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def run_alone(evenkeel, model, tokens, options, prompt):
    out = subprocess.run([evenkeel, "run", model, "--raw", "--prompt", prompt, "--max-tokens",
                          str(tokens), "--json", *options], capture_output=True, check=True)
    return json.loads(out.stdout)["completions"][0]["text"]


def clients(server, n, tokens, want):
    """Returns how many are answered something else."""
    answers = [None] * n

    def one(i):
        answers[i] = server.ask(PROMPTS[i % len(PROMPTS)], tokens)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    start = time.time()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    took = time.time() - start
    made = sum(a["usage"]["completion_tokens"] for a in answers)
    equal = sum(a["choices"][0]["text"] == want[i % len(want)] for i, a in enumerate(answers))
    print(f"{n} clients: {made} tokens in {took:.3f} s, {made / took:.0f} tokens/s; "
          f"equal to run: {equal} of {n}", flush=True)
    return n - equal


def main():
    evenkeel, model, sequences, tokens, options = *sys.argv[1:4], int(sys.argv[4]), sys.argv[5:]
    want = [run_alone(evenkeel, model, tokens, options, p) for p in PROMPTS]
    server = Server(evenkeel, model, sequences, options)
    n = int(sequences)
    differ = sum(clients(server, k, tokens, want) for k in (1, 1, max(n // 2, 1), n, 2 * n))
    code = server.stop()
    print(f"serve: exit {code}")
    return 1 if differ or code else 0


if __name__ == "__main__":
    sys.exit(main())
