/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <stdarg.h>
#include <string.h>

static _Thread_local char last_error[1024];
static bool quiet_notes;

enum ek_status ek_error(enum ek_status st, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(last_error, sizeof(last_error), fmt, ap);
    va_end(ap);
    for (char *p = last_error; *p; p++) /* one line, whatever a hostile file put into it */
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
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
    va_list ap;

    if (quiet_notes)
        return;
    fputs("evenkeel: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}
