/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/messages.h"

#include <stdlib.h>

#define MAX_FILE  ((size_t)16 << 20)
#define MAX_TURNS 65536

static enum ek_status read_turn(const json_t *o, const char *path, size_t i, struct ek_message *out)
{
    char prefix[48];
    struct ek_json_at at = {path, prefix};

    snprintf(prefix, sizeof(prefix), "messages[%zu].", i);
    if (!json_is_object(o))
        return ek_error(EK_EFORMAT, "%s: messages[%zu] must be an object", path, i);
    EK_TRY(ek_json_string(o, at, "role", &out->role));
    return ek_json_string(o, at, "content", &out->content);
}

static enum ek_status read_turns(const char *path, struct ek_messages *m)
{
    const json_t *list = m->root;
    size_t n;

    if (json_is_object(m->root))
        EK_TRY(ek_json_array(m->root, (struct ek_json_at){path, ""}, "messages", &list));
    n = json_array_size(list); /* 0 where it is no list */
    if (n == 0 || n > MAX_TURNS)
        return ek_error(EK_EFORMAT,
                        "%s: a conversation must be a list of 1 to %d messages, got %zu", path,
                        MAX_TURNS, n);
    if ((m->items = ek_calloc(n, sizeof(*m->items))) == NULL)
        return EK_ENOMEM;
    for (; m->n < n; m->n++)
        EK_TRY(read_turn(json_array_get(list, m->n), path, m->n, &m->items[m->n]));
    return EK_OK;
}

enum ek_status ek_messages_read(const char *path, struct ek_messages *out)
{
    struct ek_messages m = {0};
    enum ek_status st = ek_json_read(path, MAX_FILE, &m.root);

    if (st == EK_OK)
        st = read_turns(path, &m);
    if (st == EK_OK)
        *out = m;
    else
        ek_messages_free(&m);
    return st;
}

void ek_messages_free(struct ek_messages *m)
{
    free(m->items);
    json_decref(m->root);
    *m = (struct ek_messages){0};
}
