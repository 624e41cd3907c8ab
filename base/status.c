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

/* U+0080 to U+009F, which some terminals take for controls, are C2 80 to C2 9F in UTF-8. */
void ek_plain_text(char *s)
{
    for (unsigned char *p = (unsigned char *)s; *p; p++) {
        if (*p < 0x20 || *p == 0x7f)
            *p = '?';
        else if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f)
            p[0] = p[1] = '?';
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
