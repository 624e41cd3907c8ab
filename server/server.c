/* SPDX-License-Identifier: Apache-2.0
 *
 * Listening: libmicrohttpd has a thread a connection; the caller's thread generates.
 */
#define _GNU_SOURCE
#include "server/server.h"
#include "server/client.h"

#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HEAD_MAX  ((size_t)32 << 10) /* request line and headers */
#define WAITING   64                 /* connections that the system keeps until they are accepted */
#define PARTING_S 5                  /* when it stops, clients have so long to take their answers */

/* ---- The address ------------------------------------------------------------------------------
 */
static int bind_one(const struct addrinfo *a)
{
    int on = 1, fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, WAITING) == 0)
        return fd;
    close(fd);
    return -1;
}

static enum ek_status listen_at(const struct ek_server_options *opt, int *out)
{
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char port[8];
    int fd = -1, e;

    snprintf(port, sizeof(port), "%u", opt->port);
    if ((e = getaddrinfo(opt->host, port, &want, &found)) != 0)
        return ek_error(EK_EENV, "%s: %s", opt->host, gai_strerror(e));
    for (const struct addrinfo *a = found; a && fd < 0; a = a->ai_next)
        fd = bind_one(a);
    e = errno;
    freeaddrinfo(found);
    if (fd < 0)
        return ek_error(EK_EENV, "%s, port %u: %s", opt->host, opt->port, strerror(e));
    *out = fd;
    return EK_OK;
}

static void say_ready(const struct ek_server_options *opt, int fd)
{
    struct sockaddr_storage a;
    socklen_t n = sizeof(a);
    char port[8] = "", url[300];

    getsockname(fd, (struct sockaddr *)&a, &n);
    getnameinfo((struct sockaddr *)&a, n, NULL, 0, port, sizeof(port), NI_NUMERICSERV);
    snprintf(url, sizeof(url), strchr(opt->host, ':') ? "http://[%s]:%s" : "http://%s:%s",
             opt->host, port);
    if (opt->ready != NULL)
        opt->ready(url);
}

/* ---- Requests ---------------------------------------------------------------------------------
 */
static void count(struct server *s, int change)
{
    pthread_mutex_lock(&s->lock);
    s->clients = (uint32_t)((int)s->clients + change);
    pthread_cond_signal(&s->left);
    pthread_mutex_unlock(&s->lock);
}

/* Called with the head, with each piece of the body, and when all of it is there. */
static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *data,
                                  size_t *n, void **state)
{
    struct server *s = user;
    struct client *c = *state;

    (void)version;
    if (c == NULL) {
        c = *state = client_new(s, connection, path, method);
        if (c != NULL)
            count(s, 1);
        return c ? MHD_YES : MHD_NO;
    }
    if (*n > 0) {
        client_read(c, data, *n);
        *n = 0;
        return MHD_YES;
    }
    return client_answer(c) ? MHD_YES : MHD_NO;
}

static void on_end(void *user, struct MHD_Connection *connection, void **state,
                   enum MHD_RequestTerminationCode why)
{
    (void)connection;
    (void)why;
    if (*state == NULL)
        return;
    client_free(*state);
    *state = NULL;
    count(user, -1);
}

/* ---- Serving ----------------------------------------------------------------------------------
 */
static void part(struct server *s)
{
    struct timespec until;
    int e = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PARTING_S;
    pthread_mutex_lock(&s->lock);
    while (s->clients > 0 && e == 0)
        e = pthread_cond_timedwait(&s->left, &s->lock, &until);
    pthread_mutex_unlock(&s->lock);
}

static struct MHD_Daemon *start(struct server *s, int fd)
{
    return MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION |
                                MHD_USE_POLL | MHD_USE_ITC,
                            0, NULL, NULL, on_request, s, MHD_OPTION_LISTEN_SOCKET, fd,
                            MHD_OPTION_NOTIFY_COMPLETED, on_end, s, MHD_OPTION_NOTIFY_CONNECTION,
                            guests_notify, &s->guests, MHD_OPTION_URI_LOG_CALLBACK, guests_begin,
                            &s->guests, MHD_OPTION_CONNECTION_LIMIT,
                            (unsigned)s->opt->connections + GUESTS_SPARE,
                            MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)SILENT_S,
                            MHD_OPTION_CONNECTION_MEMORY_LIMIT, HEAD_MAX,
                            MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
}

static enum ek_status serve(struct server *s, int fd)
{
    struct MHD_Daemon *d = start(s, fd);
    enum ek_status st;

    if (d == NULL)
        return ek_error(EK_EENV, "no HTTP server can be started");
    say_ready(s->opt, fd);
    st = queue_run(&s->queue, s->engine);
    MHD_quiesce_daemon(d);
    part(s);
    MHD_stop_daemon(d);
    return st;
}

enum ek_status ek_serve(struct ek_engine *e, const struct ek_tokenizer *t,
                        const struct ek_server_options *opt)
{
    struct server s = {.engine = e, .tokenizer = t, .opt = opt, .started = (int64_t)time(NULL)};
    enum ek_status st;
    int fd = -1;

    s.sees = ek_engine_model(e)->config.vision != EK_VISION_NONE;
    if (s.sees)
        EK_TRY(ek_vl_rules_open(ek_engine_model(e), &s.rules));
    EK_TRY(listen_at(opt, &fd));
    queue_open(&s.queue, opt->stop);
    pthread_mutex_init(&s.lock, NULL);
    pthread_mutex_init(&s.parsing, NULL);
    pthread_cond_init(&s.left, NULL);
    st = guests_open(&s.guests, opt->connections, opt->per_address, opt->request_s, SILENT_S);
    if (st == EK_OK)
        st = serve(&s, fd);
    guests_close(&s.guests);
    close(fd);
    pthread_cond_destroy(&s.left);
    pthread_mutex_destroy(&s.lock);
    pthread_mutex_destroy(&s.parsing);
    queue_close(&s.queue);
    return st;
}
