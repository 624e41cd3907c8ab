/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

bool ek_mul_size(size_t a, size_t b, size_t *out)
{
    size_t r;

    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

bool ek_add_size(size_t a, size_t b, size_t *out)
{
    size_t r;

    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

size_t ek_round_up(size_t a, size_t b)
{
    size_t rest = a % b;

    return rest ? a + (b - rest) : a;
}

/* Fault injection: true for the N-th allocation when EK_FAIL_ALLOC=N. */
static bool allocation_must_fail(void)
{
    static atomic_long left = -1; /* -1: not read yet, 0: off */
    long now = atomic_load(&left);

    if (now < 0) {
        const char *text = getenv("EK_FAIL_ALLOC");
        now = text ? strtol(text, NULL, 10) : 0;
        atomic_store(&left, now > 0 ? now : 0);
    }
    return now > 0 && atomic_fetch_sub(&left, 1) == 1;
}

void *ek_calloc(size_t n, size_t size)
{
    void *p = allocation_must_fail() ? NULL : calloc(n ? n : 1, size ? size : 1);

    if (p == NULL)
        (void)ek_error(EK_ENOMEM, "out of host memory: %zu x %zu bytes", n, size);
    return p;
}

enum ek_status ek_grow(void **array, size_t *cap, size_t need, size_t size, size_t max)
{
    size_t want = *cap ? *cap : 16;
    size_t bytes;
    void *p;

    if (need <= *cap)
        return EK_OK;
    if (need > max)
        return ek_error(EK_EFORMAT, "too many items: %zu, at most %zu", need, max);
    while (want < need)
        want = want > max / 2 ? max : want * 2;
    if (!ek_mul_size(want, size, &bytes) || allocation_must_fail() ||
        (p = realloc(*array, bytes)) == NULL)
        return ek_error(EK_ENOMEM, "out of host memory: %zu x %zu bytes", want, size);
    *array = p;
    *cap = want;
    return EK_OK;
}

char *ek_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *p = ek_calloc(n, 1);

    return p ? memcpy(p, s, n) : NULL;
}

char *ek_asprintf(const char *fmt, ...)
{
    va_list ap;
    int n;
    char *p;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || (p = ek_calloc((size_t)n + 1, 1)) == NULL)
        return NULL;
    va_start(ap, fmt);
    vsnprintf(p, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return p;
}
