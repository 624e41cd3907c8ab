/* SPDX-License-Identifier: Apache-2.0
 *
 * server: a model under a plan, for clients of the usual chat interface over HTTP
 * (docs/serving.md). Depends on runtime, model, base.
 */
#ifndef EK_SERVER_H
#define EK_SERVER_H

#include "runtime/runtime.h"

struct ek_server_options {   /* all borrowed */
    const char *host;        /* address to listen at */
    uint16_t port;           /* 0: any that is free */
    const char *key;         /* that clients must show (Authorization: Bearer KEY); NULL: none */
    const char *model;       /* its name for clients */
    uint32_t connections;    /* at most so many at once, ... */
    uint32_t per_address;    /* ... and from one address */
    uint32_t request_s;      /* seconds in which a request must come, and an answer be taken */
    const atomic_bool *stop; /* set to end serving */
    void (*ready)(const char *url); /* called once it listens */
};
/* Serves until *stop: requests that run then end where they are. Prompts join those that run as
 * soon as the engine has a free sequence. EK_EENV when the address cannot be had; whatever the
 * engine fails with ends serving, after every client was told. */
enum ek_status ek_serve(struct ek_engine *e, const struct ek_tokenizer *t,
                        const struct ek_server_options *opt);

#endif
