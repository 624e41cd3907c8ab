/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"
#include "cli/session.h"
#include "server/server.h"

#include <stdlib.h>
#include <string.h>

#define KEY_MAX 4096

static const struct ek_option options[] = {
    {"plan", "FILE", "serve under this plan (default: everything on one device)"},
    {"devices", "DEVICE", "the device when there is no plan"},
    {"cache", "TYPE", "type of the cache when there is no plan (default: of activations; fp8)"},
    {"quantize", "TYPE",
     "int8 or int4: linear layers of the language model in groups; +ends: embedding, head too"},
    {"batch", "N", "sequences at once when there is no plan (default 4)"},
    {"context", "N", "tokens of a sequence when there is no plan (default 2048, or the model's)"},
    {"host", "ADDRESS", "listen at this address (default 127.0.0.1: this machine alone)"},
    {"port", "N", "and this port (default 8080; 0: any that is free)"},
    {"key-file", "FILE", "clients must show the key in this file's first line"},
    {"name", "NAME", "what clients call the model (default: its own name)"},
    {"connections", "N", "most connections at once; others are told so (default 64)"},
    {"per-address", "N", "most connections from one address (default: as many)"},
    {"request-time", "SECONDS", "a request must arrive in this time (default 60)"},
    {NULL, NULL, NULL},
};

static bool as_json;

static void ready(const char *url)
{
    printf(as_json ? "{\"url\": \"%s\"}\n" : "%s\n", url);
    fflush(stdout);
}

/* *out: malloc'd, NULL without --key-file. */
static enum ek_status read_key(const struct ek_args *a, char **out)
{
    const char *path = ek_arg(a, "key-file");
    char *key;
    size_t n;

    *out = NULL;
    if (path == NULL)
        return EK_OK;
    EK_TRY(ek_file_read(path, KEY_MAX, &key, &n));
    key[strcspn(key, "\r\n")] = '\0';
    if (*key == '\0') {
        free(key);
        return ek_error(EK_EFORMAT, "%s: the first line, the key, is empty", path);
    }
    *out = key;
    return EK_OK;
}

static enum ek_status read_options(const struct ek_args *a, struct ek_session_need *need,
                                   struct ek_server_options *opt)
{
    uint32_t port = 8080;

    if (ek_arg(a, "plan") == NULL) {
        need->batch = 4;
        EK_TRY(ek_arg_u32(a, "batch", 1, 4096, &need->batch));
        EK_TRY(ek_arg_u32(a, "context", 1, 1u << 22, &need->context));
    } else if (ek_arg(a, "batch") != NULL || ek_arg(a, "context") != NULL) {
        return ek_error(EK_EUSAGE, "--batch, --context: not with --plan, which says them");
    }
    if (ek_arg(a, "host") != NULL)
        opt->host = ek_arg(a, "host");
    EK_TRY(ek_arg_u32(a, "port", 0, 65535, &port));
    opt->port = (uint16_t)port;
    EK_TRY(ek_arg_u32(a, "connections", 1, 4096, &opt->connections));
    opt->per_address = opt->connections;
    EK_TRY(ek_arg_u32(a, "per-address", 1, 4096, &opt->per_address));
    return ek_arg_u32(a, "request-time", 1, 86400, &opt->request_s);
}

static enum ek_status run(const struct ek_args *args)
{
    struct ek_server_options opt = {.host = "127.0.0.1",
                                    .connections = 64,
                                    .request_s = 60,
                                    .stop = &ek_interrupted,
                                    .ready = ready};
    struct ek_session_need need = {0};
    struct ek_tokenizer *tokenizer = NULL;
    struct ek_session session = {0};
    char *key = NULL;
    enum ek_status st = read_options(args, &need, &opt);

    as_json = ek_arg_flag(args, "json");
    if (st == EK_OK)
        st = read_key(args, &key);
    if (st == EK_OK)
        st = ek_tokenizer_open(args->operands[0], &tokenizer);
    need.tokenizer = tokenizer;
    opt.key = key;
    ek_catch_interrupts();
    if (st == EK_OK)
        st = ek_session_open(args, args->operands[0], &need, &session);
    if (st == EK_OK) {
        opt.model = ek_arg(args, "name") ? ek_arg(args, "name") : session.model->name;
        st = ek_serve(session.engine, tokenizer, &opt);
    }
    ek_session_close(&session);
    ek_tokenizer_free(tokenizer);
    free(key);
    return st;
}

const struct ek_command ek_cmd_serve = {
    .name = "serve",
    .summary = "answer clients over HTTP, under a plan",
    .operands = "MODEL",
    .n_operands = 1,
    .options = options,
    .description =
        "POST /v1/chat/completions and /v1/completions, as OpenAI's interface has them, "
        "with streaming\n"
        "and pictures; GET /v1/models, /health, /metrics. The address is printed once it "
        "listens. Prompts\n"
        "join those that run. SIGINT or SIGTERM ends it: clients are told, and the exit "
        "code is 0.\n"
        "docs/serving.md says what is understood and what is refused.",
    .run = run,
};
