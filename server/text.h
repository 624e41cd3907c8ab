/* SPDX-License-Identifier: Apache-2.0
 *
 * Text that grows.
 */
#ifndef EK_SERVER_TEXT_H
#define EK_SERVER_TEXT_H

#include "base/base.h"

struct text {
    char *data; /* NUL-terminated; NULL until something was added; freed with free() */
    size_t n, cap;
};
/* EK_EFORMAT when the text and its NUL were longer than max. */
enum ek_status text_add(struct text *t, const char *data, size_t n, size_t max);

#endif
