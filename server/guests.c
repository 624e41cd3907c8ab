/* SPDX-License-Identifier: Apache-2.0 */
#include "server/guests.h"
#include "server/answer.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define LOOK_NS   100000000 /* how often it is looked for the late */
#define REFUSED_S 5         /* for those who are only told that there are too many */

/* Addresses of IPv4 as IPv6 has them; of others the part that one household has. */
static void read_address(const struct sockaddr *a, uint8_t out[16])
{
    memset(out, 0, 16);
    if (a != NULL && a->sa_family == AF_INET) {
        out[10] = out[11] = 0xff;
        memcpy(out + 12, &((const struct sockaddr_in *)(const void *)a)->sin_addr, 4);
    } else if (a != NULL && a->sa_family == AF_INET6) {
        const struct in6_addr *v6 = &((const struct sockaddr_in6 *)(const void *)a)->sin6_addr;
        memcpy(out, v6, IN6_IS_ADDR_V4MAPPED(v6) ? 16 : 8);
    }
}

/* The lock is held. */
static int refused_with(const struct guests *g, const struct guest *guest)
{
    uint32_t n = 0, of_one = 0;

    for (const struct guest *o = g->first; o != NULL; o = o->next) {
        if (o->refused != 0)
            continue;
        n++;
        of_one += memcmp(o->address, guest->address, sizeof(o->address)) == 0;
    }
    return n >= g->most               ? MHD_HTTP_SERVICE_UNAVAILABLE
           : of_one >= g->most_of_one ? MHD_HTTP_TOO_MANY_REQUESTS
                                      : 0;
}

static struct guest *enter(struct guests *g, struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *fd =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    const union MHD_ConnectionInfo *address =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    struct guest *guest = ek_calloc(1, sizeof(*guest));

    if (guest == NULL)
        return NULL;
    guest->fd = fd->connect_fd;
    guest->since = ek_now_ns();
    read_address(address ? address->client_addr : NULL, guest->address);
    pthread_mutex_lock(&g->lock);
    guest->refused = refused_with(g, guest);
    guest->next = g->first;
    g->first = guest;
    pthread_mutex_unlock(&g->lock);
    return guest;
}

static void leave(struct guests *g, struct guest *guest)
{
    pthread_mutex_lock(&g->lock);
    for (struct guest **at = &g->first; *at != NULL; at = &(*at)->next)
        if (*at == guest) {
            *at = guest->next;
            break;
        }
    pthread_mutex_unlock(&g->lock);
    free(guest);
}

void guests_notify(void *user, struct MHD_Connection *connection, void **context,
                   enum MHD_ConnectionNotificationCode what)
{
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        *context = enter(user, connection);
    } else if (*context != NULL) {
        leave(user, *context);
        *context = NULL;
    }
}

struct guest *guests_find(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    return i ? i->socket_context : NULL;
}

void *guests_begin(void *user, const char *uri, struct MHD_Connection *connection)
{
    (void)uri;
    guests_move(user, guests_find(connection), GUEST_SENDS);
    return NULL;
}

void guests_move(struct guests *g, struct guest *guest, enum guest_state to)
{
    if (guest == NULL)
        return;
    pthread_mutex_lock(&g->lock);
    if (guest->state != GUEST_LATE)
        guest->state = to;
    guest->since = ek_now_ns();
    pthread_mutex_unlock(&g->lock);
}

/* ---- The late ---------------------------------------------------------------------------------
 */
/* libmicrohttpd waits for the rest of the request: nothing else is being sent. Who does not take
 * this is not waited for. */
static void tell(int fd, uint32_t seconds)
{
    char message[80], *body, *text = NULL;

    snprintf(message, sizeof(message), "the request did not arrive within %u s", seconds);
    body = answer_error(MHD_HTTP_REQUEST_TIMEOUT, NULL, message);
    if (body != NULL)
        text = ek_asprintf("HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
                           "Content-Length: %zu\r\nConnection: close\r\n\r\n%s",
                           strlen(body), body);
    if (text != NULL)
        (void)send(fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
    free(text);
    free(body);
}

/* Of its state; UINT32_MAX: without a limit. */
static uint32_t seconds_of(const struct guests *g, const struct guest *o)
{
    uint32_t most = o->state == GUEST_RESTS ? g->rest_s : g->seconds;

    if (o->state == GUEST_WAITS || o->state == GUEST_LATE)
        return UINT32_MAX;
    return o->refused != 0 && most > REFUSED_S ? REFUSED_S : most;
}

/* The lock is held: the socket is open until the guest has left. */
static void close_late(struct guests *g)
{
    uint64_t now = ek_now_ns();

    for (struct guest *o = g->first; o != NULL; o = o->next) {
        uint32_t seconds = seconds_of(g, o);
        if (seconds == UINT32_MAX || now - o->since < (uint64_t)seconds * 1000000000)
            continue;
        if (o->state == GUEST_SENDS)
            tell(o->fd, seconds);
        shutdown(o->fd, SHUT_RDWR);
        o->state = GUEST_LATE;
    }
}

static void *look(void *arg)
{
    const struct timespec pause = {.tv_nsec = LOOK_NS};
    struct guests *g = arg;
    bool closing = false;

    while (!closing) {
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&g->lock);
        close_late(g);
        closing = g->closing;
        pthread_mutex_unlock(&g->lock);
    }
    return NULL;
}

enum ek_status guests_open(struct guests *g, uint32_t most, uint32_t most_of_one, uint32_t seconds,
                           uint32_t rest_s)
{
    *g = (struct guests){
        .most = most, .most_of_one = most_of_one, .seconds = seconds, .rest_s = rest_s};
    pthread_mutex_init(&g->lock, NULL);
    g->running = pthread_create(&g->thread, NULL, look, g) == 0;
    return g->running ? EK_OK : ek_error(EK_EENV, "no thread can be started");
}

void guests_close(struct guests *g)
{
    pthread_mutex_lock(&g->lock);
    g->closing = true;
    pthread_mutex_unlock(&g->lock);
    if (g->running)
        pthread_join(g->thread, NULL);
    pthread_mutex_destroy(&g->lock);
}
