/* SPDX-License-Identifier: Apache-2.0
 *
 * What a client of `serve` sends: a head, and behind the empty line a document of either interface.
 */
#include "server/http.h"
#include "server/request.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void parse_body(const char *text, size_t n, bool chat)
{
    struct request r = {0};
    char *file;
    size_t size;

    if (request_parse(text, n, chat, &r) != EK_OK)
        return;
    if (chat ? r.n_messages == 0 : r.prompt == NULL && r.n_ids == 0)
        __builtin_trap(); /* what was read must be usable */
    for (size_t i = 0; i < r.n_images; i++)
        if (request_image(r.images[i], &file, &size) == EK_OK)
            free(file);
    request_free(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char *text = malloc(n + 1);
    struct http_head h;
    const char *body;
    size_t head;

    if (text == NULL)
        return 0;
    memcpy(text, data, n);
    text[n] = '\0';
    body = strstr(text, "\r\n\r\n");
    head = body ? (size_t)(body - text) + 4 : n;
    if (http_parse_head(text, head, &h) == 0 && (h.path[0] != '/' || h.length > HTTP_BODY_MAX))
        __builtin_trap();
    if (body != NULL) {
        parse_body(text + head, n - head, true);
        parse_body(text + head, n - head, false);
    }
    free(text);
    return 0;
}
