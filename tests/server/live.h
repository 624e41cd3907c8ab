/* SPDX-License-Identifier: Apache-2.0
 *
 * A server of a small model that sees, three sequences at once, in this process; and its clients.
 */
#ifndef EK_TESTS_SERVER_LIVE_H
#define EK_TESTS_SERVER_LIVE_H

#include "server/server.h"
#include "tests/runtime/support.h"

enum { ANSWER = 1 << 16 };

extern struct ek_model *model;
extern struct ek_engine *engine;
extern struct ek_tokenizer *tokenizer;
extern struct ek_server_options options; /* of the server: may be changed before start */

/* A checked fixture: the engine, not served yet. */
void open_server(void);
void open_server_of(const char *name); /* of another fixture's model, after close_server */
void close_server(void);
/* Steps take so long that no answer ends by itself while a test looks. */
void make_slow(void);
void start(void); /* after end, again */
/* Asks it to stop, and holds its status against what is wanted. */
void end(enum ek_status want);
/* Waits for it to end by itself. */
enum ek_status ended_with(void);

/* Connects, from an address of this machine. */
int dial_from(const char *address);
int dial(void);
void say(int fd, const char *text);
/* Everything until the server closes, or until the text `last`, NUL-terminated. to: [ANSWER] */
const char *hear_until(int fd, const char *last, char *to);
const char *hear(int fd, char *to); /* and closes */
/* HTTP/1.0: the answer ends with the connection. */
void post(int fd, const char *path, const char *body);
int code_of(const char *answer); /* -1: it is none */
json_t *document_of(const char *answer);
const char *choice_text(const json_t *v);
/* A line of /metrics: its number. */
double metric(const char *name);

/* What ek_generate makes of three ids (first, 2, 3), alone. *text is freed by the caller. */
void alone(int32_t first, uint32_t n, double temperature, uint64_t seed, char **text);

#endif
