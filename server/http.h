/* SPDX-License-Identifier: Apache-2.0
 *
 * As much of HTTP/1.1 as an interface of JSON documents needs: one request a connection, bodies of
 * a stated length, answers whole or as a stream of events that ends with the connection.
 */
#ifndef EK_SERVER_HTTP_H
#define EK_SERVER_HTTP_H

#include "base/base.h"

#define HTTP_HEAD_MAX ((size_t)16 << 10) /* request line and headers */
#define HTTP_BODY_MAX ((size_t)32 << 20)

struct http_head {             /* strings are NUL-terminated pieces of the text that was parsed */
    const char *method, *path; /* the path without its query */
    const char *authorization; /* "" when there is none */
    size_t length;             /* of the body */
    bool has_length, expects;  /* "Expect: 100-continue" */
};
/* text: everything up to the empty line, n bytes with that line, NUL behind them; it is cut up.
 * Returns 0, or the code of the refusal. */
int http_parse_head(char *text, size_t n, struct http_head *out);

struct http_request {
    struct http_head head;
    char *text; /* malloc'd: head, and the body behind it */
    char *body; /* NUL behind head.length bytes */
};
/* Reads a request; allowed (with the head, before the body is read) may refuse it: returns a code.
 * Returns 0, the code of a refusal, or -1 when the client has gone, or *stop. */
int http_read(int fd, volatile const bool *stop,
              int (*allowed)(void *user, const struct http_head *h), void *user,
              struct http_request *out);
void http_request_free(struct http_request *r); /* zeroes it; a zeroed one is fine */

/* A whole answer. False when the client does not take it. */
bool http_reply(int fd, int code, const char *type, const char *body, size_t n);
/* The head of a stream of events, which http_send sends. */
bool http_stream(int fd);
bool http_send(int fd, const void *data, size_t n);
/* The client has closed its end. */
bool http_gone(int fd);

#endif
