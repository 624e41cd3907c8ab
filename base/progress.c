/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TTY_PERIOD_NS 100000000u
#define LOG_PERIOD_NS 10000000000u
#define BAR_WIDTH     24

struct ek_progress {
    char *what;
    uint64_t total, start_ns, shown_ns;
    bool tty;
};

struct ek_progress *ek_progress_new(const char *what, uint64_t total)
{
    struct ek_progress *p = ek_calloc(1, sizeof(*p));

    if (p == NULL)
        return NULL;
    p->what = ek_strdup(what);
    p->total = total;
    p->start_ns = p->shown_ns = ek_now_ns();
    p->tty = isatty(STDERR_FILENO);
    return p;
}

/* Time left by proportion; "" until a twentieth is done. */
static void time_left(const struct ek_progress *p, uint64_t done, uint64_t now, char *buf, size_t n)
{
    double elapsed = (double)(now - p->start_ns) * 1e-9;
    double left = done > 0 ? elapsed * (double)(p->total - done) / (double)done : 0;

    buf[0] = '\0';
    if (done > 0 && done * 20 >= p->total && done < p->total)
        snprintf(buf, n, left < 120 ? ", %.0f s left" : ", %.0f min left",
                 left < 120 ? left : left / 60);
}

void ek_progress_set(struct ek_progress *p, uint64_t done, const char *detail)
{
    uint64_t now = ek_now_ns();
    char left[64];

    if (p == NULL || (now - p->shown_ns < (p->tty ? TTY_PERIOD_NS : LOG_PERIOD_NS) &&
                      (done < p->total || !p->tty)))
        return;
    p->shown_ns = now;
    time_left(p, done, now, left, sizeof(left));
    if (p->tty) {
        int full = p->total ? (int)(BAR_WIDTH * done / p->total) : 0;
        fprintf(stderr, "\r\033[K%s [%.*s%*s] %llu/%llu%s%s%s", p->what ? p->what : "", full,
                "########################", BAR_WIDTH - full, "", (unsigned long long)done,
                (unsigned long long)p->total, left, detail ? ": " : "", detail ? detail : "");
    } else {
        fprintf(stderr, "evenkeel: %s %llu/%llu%s%s%s\n", p->what ? p->what : "",
                (unsigned long long)done, (unsigned long long)p->total, left, detail ? ": " : "",
                detail ? detail : "");
    }
    fflush(stderr);
}

void ek_progress_free(struct ek_progress *p)
{
    if (p == NULL)
        return;
    if (p->tty)
        fputs("\r\033[K", stderr);
    free(p->what);
    free(p);
}
