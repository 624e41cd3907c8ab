/* SPDX-License-Identifier: Apache-2.0
 *
 * Who is connected: not too many, nor too many from one address, and none takes for ever to send a
 * request or to take its answer. libmicrohttpd closes those that are silent; this, those that move
 * a byte now and then.
 */
#ifndef EK_SERVER_GUESTS_H
#define EK_SERVER_GUESTS_H

#include "base/base.h"

#include <microhttpd.h>
#include <pthread.h>

#define GUESTS_SPARE                                                                               \
    16 /* connections beyond the limit that are told so; others are just closed                    \
        */

enum guest_state {
    GUEST_RESTS, /* between requests, or before the first: may be silent as long as any */
    GUEST_SENDS, /* its request: has limited time from its first line on */
    GUEST_WAITS, /* for tokens: as long as it takes */
    GUEST_TAKES, /* all of its answer is made: has limited time */
    GUEST_LATE   /* it was closed */
};

struct guest {
    struct guest *next;
    int fd;
    enum guest_state state;
    uint64_t since; /* ek_now_ns, of its state */
    uint8_t address[16];
    int refused; /* the HTTP status that its requests are refused with, or 0 */
};

struct guests {
    pthread_mutex_t lock;
    pthread_t thread; /* that looks for the late */
    bool running, closing;
    struct guest *first;
    uint32_t most, most_of_one; /* at once; from one address (of IPv6: its first 64 bits) */
    uint32_t seconds;           /* for a request, and for taking an answer */
    uint32_t rest_s;            /* between them */
};

enum ek_status guests_open(struct guests *g, uint32_t most, uint32_t most_of_one, uint32_t seconds,
                           uint32_t rest_s);
void guests_close(struct guests *g); /* nobody is connected */
/* MHD_NotifyConnectionCallback; user: the guests. */
void guests_notify(void *user, struct MHD_Connection *connection, void **context,
                   enum MHD_ConnectionNotificationCode what);
/* MHD_OPTION_URI_LOG_CALLBACK, user: the guests. A request's first line is there. */
void *guests_begin(void *user, const char *uri, struct MHD_Connection *connection);
/* The connection's; NULL: there was no memory for it. */
struct guest *guests_find(struct MHD_Connection *connection);
/* NULL is fine. */
void guests_move(struct guests *g, struct guest *guest, enum guest_state to);

#endif
