/* SPDX-License-Identifier: Apache-2.0
 *
 * One request, from its head to the end of its answer. Each connection has a thread of its own, by
 * libmicrohttpd, on which all of this runs.
 */
#ifndef EK_SERVER_CLIENT_H
#define EK_SERVER_CLIENT_H

#include "server/guests.h"
#include "server/queue.h"
#include "server/server.h"

#include <microhttpd.h>

#define BODY_MAX   ((size_t)32 << 20)
#define BODIES_MAX ((size_t)512 << 20) /* of all requests together */
#define LARGE_BODY ((size_t)1 << 20)   /* such are parsed one at a time */
#define SILENT_S   30 /* a connection may be silent so long, while nothing is generated for it */

struct server {
    struct ek_engine *engine;
    const struct ek_tokenizer *tokenizer;
    const struct ek_server_options *opt;
    struct ek_vl_rules rules;
    bool sees;       /* rules are the model's */
    int64_t started; /* seconds since 1970 */
    struct queue queue;
    struct guests guests;
    atomic_size_t bodies;    /* bytes of requests that are kept */
    pthread_mutex_t parsing; /* a large body */
    pthread_mutex_t lock;
    pthread_cond_t left; /* a client has */
    uint32_t clients;    /* requests that are not answered to their end */
};
struct client;
/* The head is there. Where that is refused already, the answer is queued, and nothing more is read.
 * NULL: no memory. */
struct client *client_new(struct server *s, struct MHD_Connection *connection, const char *path,
                          const char *method);
/* A piece of the body. */
void client_read(struct client *c, const char *data, size_t n);
/* The body is there: queues the answer; false when that cannot be. */
bool client_answer(struct client *c);
void client_free(struct client *c); /* NULL is fine */

#endif
