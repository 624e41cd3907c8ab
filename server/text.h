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
/* A document, taken over, without the last `open` bytes of its text: 1 leaves an object open.
 * EK_ENOMEM where it is NULL. */
enum ek_status text_add_json(struct text *t, json_t *v, size_t open, size_t max);

#endif
