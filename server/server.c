/* SPDX-License-Identifier: Apache-2.0
 *
 * Listening: a thread that accepts, a thread a client; the caller's thread generates.
 */
#define _GNU_SOURCE
#include "server/server.h"
#include "server/client.h"
#include "server/http.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOOK_MS 100
#define WAITING 64 /* connections that the system keeps until they are accepted */

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

/* ---- Clients ----------------------------------------------------------------------------------
 */
struct connection {
    struct server *s;
    int fd;
};

static void leave(struct server *s)
{
    pthread_mutex_lock(&s->lock);
    s->clients--;
    pthread_cond_signal(&s->left);
    pthread_mutex_unlock(&s->lock);
}

/* Closing with bytes unread would take the answer back from the client. */
static void hang_up(int fd)
{
    char rest[4096];
    struct pollfd p = {.fd = fd, .events = POLLIN};

    shutdown(fd, SHUT_WR);
    for (int i = 0; i < 64 && poll(&p, 1, LOOK_MS) > 0; i++)
        if (recv(fd, rest, sizeof(rest), MSG_DONTWAIT) <= 0)
            break;
    close(fd);
}

static void *serve_connection(void *arg)
{
    struct connection c = *(struct connection *)arg;

    free(arg);
    client_serve(c.s, c.fd);
    hang_up(c.fd);
    leave(c.s);
    return NULL;
}

static bool enter(struct server *s)
{
    bool room;

    pthread_mutex_lock(&s->lock);
    room = s->clients < s->opt->connections;
    s->clients += room;
    pthread_mutex_unlock(&s->lock);
    return room;
}

static void refuse(int fd)
{
    static const char text[] =
        "{\"error\":{\"message\":\"too many clients\",\"type\":\"server_error\",\"param\":null,"
        "\"code\":503}}\n";

    http_reply(fd, 503, "application/json", text, sizeof(text) - 1);
    close(fd);
}

static void take_client(struct server *s, int fd)
{
    struct connection *c;
    pthread_t thread;

    if (!enter(s)) {
        refuse(fd);
        return;
    }
    if ((c = malloc(sizeof(*c))) != NULL)
        *c = (struct connection){s, fd};
    if (c != NULL && pthread_create(&thread, NULL, serve_connection, c) == 0) {
        pthread_detach(thread);
        return;
    }
    free(c);
    refuse(fd);
    leave(s);
}

struct listener {
    struct server *s;
    int fd;
};

static void *accept_clients(void *arg)
{
    const struct listener *l = arg;
    struct pollfd p = {.fd = l->fd, .events = POLLIN};

    while (!l->s->closing) {
        int fd = poll(&p, 1, LOOK_MS) > 0 ? accept4(l->fd, NULL, NULL, SOCK_CLOEXEC) : -1;
        if (fd >= 0)
            take_client(l->s, fd);
        else if (errno == EMFILE || errno == ENFILE)
            usleep(LOOK_MS * 1000); /* until somebody leaves */
    }
    return NULL;
}

/* ---- Serving ----------------------------------------------------------------------------------
 */
static void wait_for_clients(struct server *s)
{
    pthread_mutex_lock(&s->lock);
    while (s->clients > 0)
        pthread_cond_wait(&s->left, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

static enum ek_status serve(struct server *s, int fd)
{
    struct listener l = {s, fd};
    pthread_t thread;
    enum ek_status st;

    if (pthread_create(&thread, NULL, accept_clients, &l) != 0)
        return ek_error(EK_EENV, "no thread to listen with");
    say_ready(s->opt, fd);
    st = queue_run(&s->queue, s->engine);
    s->closing = true;
    pthread_join(thread, NULL);
    wait_for_clients(s);
    return st;
}

enum ek_status ek_serve(struct ek_engine *e, const struct ek_tokenizer *t,
                        const struct ek_server_options *opt)
{
    struct server s = {.engine = e, .tokenizer = t, .opt = opt};
    enum ek_status st;
    int fd = -1;

    s.sees = ek_engine_model(e)->config.vision != EK_VISION_NONE;
    if (s.sees)
        EK_TRY(ek_vl_rules_open(ek_engine_model(e), &s.rules));
    EK_TRY(listen_at(opt, &fd));
    queue_open(&s.queue, opt->stop);
    pthread_mutex_init(&s.lock, NULL);
    pthread_cond_init(&s.left, NULL);
    st = serve(&s, fd);
    close(fd);
    pthread_cond_destroy(&s.left);
    pthread_mutex_destroy(&s.lock);
    queue_close(&s.queue);
    return st;
}
