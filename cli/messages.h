/* SPDX-License-Identifier: Apache-2.0
 *
 * Conversations of run: a JSON file of turns, as chat interfaces have them. */
#ifndef EK_CLI_MESSAGES_H
#define EK_CLI_MESSAGES_H

#include "model/model.h"

struct ek_messages {
    struct ek_message *items; /* into root */
    size_t n;
    json_t *root;
};

/* [{"role": "system" | "user" | "assistant", "content": "..."}, ...], or an object with such a list
 * as "messages". Freed with ek_messages_free. */
enum ek_status ek_messages_read(const char *path, struct ek_messages *out);
void ek_messages_free(struct ek_messages *m); /* a zeroed one is fine */

#endif
