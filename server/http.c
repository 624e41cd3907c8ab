/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "server/http.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#define HEAD_S  10 /* a client may take so long for its head, */
#define BODY_S  60 /* and its body */
#define SEND_S  30 /* and for what it is sent */
#define LOOK_MS 200

/* ---- Parsing --------------------------------------------------------------------------------- */
static bool is_text(char c)
{
    return c == '\t' || ((unsigned char)c >= 0x20 && c != 0x7f);
}

/* Cuts the next line off *text; NULL when it does not end in CR LF or has other controls in it. */
static char *cut_line(char **text, const char *end)
{
    char *line = *text, *p = line;

    while (p < end && is_text(*p))
        p++;
    if (end - p < 2 || p[0] != '\r' || p[1] != '\n')
        return NULL;
    *p = '\0';
    *text = p + 2;
    return line;
}

static int parse_line(char *line, struct http_head *h)
{
    char *path = strchr(line, ' '), *version = path ? strchr(path + 1, ' ') : NULL;

    if (version == NULL || path == line || path[1] != '/')
        return 400;
    *path++ = '\0';
    *version++ = '\0';
    if (strcmp(version, "HTTP/1.1") != 0 && strcmp(version, "HTTP/1.0") != 0)
        return strncmp(version, "HTTP/", 5) == 0 ? 505 : 400;
    path[strcspn(path, "?#")] = '\0';
    h->method = line;
    h->path = path;
    return 0;
}

static int parse_length(const char *value, struct http_head *h)
{
    uint64_t n;

    if (*value < '0' || *value > '9' ||
        ek_parse_u64(value, "Content-Length", 0, UINT64_MAX, &n) != EK_OK ||
        (h->has_length && h->length != n))
        return 400;
    h->length = n;
    h->has_length = true;
    return n > HTTP_BODY_MAX ? 413 : 0;
}

static int parse_header(char *line, struct http_head *h)
{
    char *value = strchr(line, ':'), *end;

    if (value == NULL || value == line || strcspn(line, " \t") < (size_t)(value - line))
        return 400;
    *value++ = '\0';
    value += strspn(value, " \t");
    for (end = value + strlen(value); end > value && (end[-1] == ' ' || end[-1] == '\t');)
        *--end = '\0';
    if (strcasecmp(line, "Content-Length") == 0)
        return parse_length(value, h);
    if (strcasecmp(line, "Transfer-Encoding") == 0)
        return 411;
    if (strcasecmp(line, "Expect") == 0)
        h->expects = strcasecmp(value, "100-continue") == 0;
    if (strcasecmp(line, "Authorization") == 0)
        h->authorization = value;
    return 0;
}

int http_parse_head(char *text, size_t n, struct http_head *out)
{
    const char *end = text + n;
    struct http_head h = {.authorization = ""};
    char *line = cut_line(&text, end);
    int code = line ? parse_line(line, &h) : 400;

    while (code == 0) {
        if ((line = cut_line(&text, end)) == NULL)
            return 400;
        if (*line == '\0')
            break;
        code = parse_header(line, &h);
    }
    if (code == 0)
        *out = h;
    return code;
}

/* ---- Reading --------------------------------------------------------------------------------- */
/* Some bytes, at most room; 0: none any more, or none in time. */
static size_t receive(int fd, volatile const bool *stop, uint64_t deadline, char *to, size_t room)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    ssize_t n;

    while (!*stop && ek_now_ns() < deadline) {
        if (poll(&p, 1, LOOK_MS) <= 0)
            continue;
        n = recv(fd, to, room, MSG_DONTWAIT);
        if (n >= 0)
            return (size_t)n;
        if (errno != EAGAIN && errno != EINTR)
            return 0;
    }
    return 0;
}

static uint64_t seconds_from_now(unsigned s)
{
    return ek_now_ns() + s * (uint64_t)1000000000;
}

/* Reads until the empty line. *n: all that came; returns the length of the head, or 0 with *code.
 */
static size_t read_head(int fd, volatile const bool *stop, char *text, size_t *n, int *code)
{
    uint64_t deadline = seconds_from_now(HEAD_S);
    const char *end;

    for (*n = 0, *code = 431; *n < HTTP_HEAD_MAX;) {
        size_t got = receive(fd, stop, deadline, text + *n, HTTP_HEAD_MAX - *n);
        if (got == 0) {
            *code = *stop || *n == 0 || ek_now_ns() < deadline ? -1 : 408;
            return 0;
        }
        *n += got;
        if ((end = memmem(text, *n, "\r\n\r\n", 4)) != NULL)
            return (size_t)(end - text) + 4;
    }
    return 0;
}

static int read_body(int fd, volatile const bool *stop, struct http_request *r, size_t have)
{
    uint64_t deadline = seconds_from_now(BODY_S);

    while (have < r->head.length) {
        size_t got = receive(fd, stop, deadline, r->body + have, r->head.length - have);
        if (got == 0)
            return *stop || ek_now_ns() < deadline ? -1 : 408;
        have += got;
    }
    r->body[r->head.length] = '\0';
    return 0;
}

int http_read(int fd, volatile const bool *stop,
              int (*allowed)(void *user, const struct http_head *h), void *user,
              struct http_request *out)
{
    struct http_request r = {.text = malloc(HTTP_HEAD_MAX + 1)};
    size_t n = 0, head = 0;
    int code = 503;

    if (r.text != NULL)
        head = read_head(fd, stop, r.text, &n, &code);
    if (head > 0)
        code = http_parse_head(r.text, head, &r.head);
    if (code == 0)
        code = allowed(user, &r.head);
    if (code == 0 && (r.body = malloc(r.head.length + 1)) == NULL)
        code = 503;
    if (code == 0) {
        size_t have = n - head < r.head.length ? n - head : r.head.length;
        memcpy(r.body, r.text + head, have);
        if (r.head.expects && have < r.head.length)
            http_send(fd, "HTTP/1.1 100 Continue\r\n\r\n", 25);
        code = read_body(fd, stop, &r, have);
    }
    if (code != 0)
        http_request_free(&r);
    else
        *out = r;
    return code;
}

void http_request_free(struct http_request *r)
{
    free(r->text);
    free(r->body);
    *r = (struct http_request){0};
}

/* ---- Answering ------------------------------------------------------------------------------- */
static const char *reason(int code)
{
    static const struct {
        int code;
        const char *text;
    } reasons[] = {{200, "OK"},
                   {400, "Bad Request"},
                   {401, "Unauthorized"},
                   {404, "Not Found"},
                   {405, "Method Not Allowed"},
                   {408, "Request Timeout"},
                   {411, "Length Required"},
                   {413, "Content Too Large"},
                   {431, "Request Header Fields Too Large"},
                   {500, "Internal Server Error"},
                   {503, "Service Unavailable"},
                   {505, "HTTP Version Not Supported"}};

    for (size_t i = 0; i < EK_ARRAY_LEN(reasons); i++)
        if (reasons[i].code == code)
            return reasons[i].text;
    return "Error";
}

bool http_send(int fd, const void *data, size_t n)
{
    uint64_t deadline = seconds_from_now(SEND_S);
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    const char *at = data;

    while (n > 0 && ek_now_ns() < deadline) {
        ssize_t sent = send(fd, at, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            at += sent;
            n -= (size_t)sent;
        } else if (errno == EAGAIN) {
            poll(&p, 1, LOOK_MS);
        } else if (errno != EINTR) {
            return false;
        }
    }
    return n == 0;
}

bool http_reply(int fd, int code, const char *type, const char *body, size_t n)
{
    char head[256];
    int k = snprintf(head, sizeof(head),
                     "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
                     "Connection: close\r\n\r\n",
                     code, reason(code), type, n);

    return http_send(fd, head, (size_t)k) && http_send(fd, body, n);
}

bool http_stream(int fd)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                               "Cache-Control: no-cache\r\nConnection: close\r\n\r\n";

    return http_send(fd, head, sizeof(head) - 1);
}

bool http_gone(int fd)
{
    char c;
    ssize_t n = recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT);

    return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}
