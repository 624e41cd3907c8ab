/* SPDX-License-Identifier: Apache-2.0
 *
 * One client: its request, and what it is answered. Each has a thread of its own.
 */
#ifndef EK_SERVER_CLIENT_H
#define EK_SERVER_CLIENT_H

#include "server/queue.h"
#include "server/server.h"

struct server {
    struct ek_engine *engine;
    const struct ek_tokenizer *tokenizer;
    const struct ek_server_options *opt;
    struct ek_vl_rules rules;
    bool sees; /* rules are the model's */
    struct queue queue;
    pthread_mutex_t lock;
    pthread_cond_t left; /* a client has */
    uint32_t clients;
    volatile bool closing; /* clients are to leave */
};
/* Reads a request from the connection and answers it. */
void client_serve(struct server *s, int fd);

#endif
