/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

static _Thread_local char last_error[1024];
static bool quiet_notes;

/* Bytes of the code point at p, 0 when it is not UTF-8 (overlong forms and surrogates are not). */
static size_t code_point(const unsigned char *p)
{
    size_t n = *p < 0x80 ? 1 : *p < 0xc2 ? 0 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : *p < 0xf5 ? 4 : 0;

    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) ||
        (*p == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

/* U+0080 to U+009F, which some terminals take for controls, are C2 80 to C2 9F in UTF-8. */
void ek_plain_text(char *s)
{
    size_t n;

    for (unsigned char *p = (unsigned char *)s; *p; p += n) {
        n = code_point(p);
        if (n == 2 && p[0] == 0xc2 && p[1] <= 0x9f)
            p[0] = p[1] = '?';
        else if (n == 0 || *p < 0x20 || *p == 0x7f)
            *p = '?';
        n = n ? n : 1;
    }
}

enum ek_status ek_error(enum ek_status st, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(last_error, sizeof(last_error), fmt, ap);
    va_end(ap);
    ek_plain_text(last_error); /* one line, whatever a hostile file put into it */
    return st;
}

const char *ek_last_error(void)
{
    return last_error;
}

int ek_exit_code(enum ek_status st)
{
    static const int codes[] = {
        [EK_OK] = 0,      [EK_NO] = 1,      [EK_EUSAGE] = 2,       [EK_EENV] = 3,
        [EK_ENOMEM] = 3,  [EK_EFORMAT] = 4, [EK_EUNSUPPORTED] = 4, [EK_EUNPROVEN] = 5,
        [EK_EDEVICE] = 6, [EK_EINTR] = 130,
    };
    return (size_t)st < EK_ARRAY_LEN(codes) ? codes[st] : 3;
}

void ek_set_quiet(bool quiet)
{
    quiet_notes = quiet;
}

void ek_note(const char *fmt, ...)
{
    char line[2048];
    va_list ap;

    if (quiet_notes)
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    ek_plain_text(line);
    fprintf(stderr, "evenkeel: %s\n", line);
}

void ek_stdio_init(void)
{
    static const int wrong_way[] = {O_WRONLY, O_RDONLY, O_RDONLY};

    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
            open("/dev/null", wrong_way[fd]); /* the lowest free descriptor: fd itself */
    signal(SIGPIPE, SIG_IGN);
}

enum ek_status ek_stdio_flush(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return EK_OK;
    return ek_error(EK_EENV, "stdout: write error");
}
