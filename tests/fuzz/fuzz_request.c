/* SPDX-License-Identifier: Apache-2.0
 *
 * What a client of `serve` sends, as a document of either interface.
 */
#include "server/request.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void parse(const char *text, size_t n, bool chat)
{
    struct request r = {0};
    char *file;
    size_t size;

    if (request_parse(text, n, chat, &r) != EK_OK)
        return;
    if (chat ? r.n_messages == 0 : r.n_prompts == 0)
        __builtin_trap(); /* what was read must be usable */
    for (size_t i = 0; !chat && i < r.n_prompts; i++)
        if (r.prompts[i].text == NULL && r.prompts[i].n_ids == 0)
            __builtin_trap();
    for (size_t i = 0; i < r.n_images; i++)
        if (request_image(r.images[i], &file, &size) == EK_OK)
            free(file);
    request_free(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    parse((const char *)data, n, true);
    parse((const char *)data, n, false);
    return 0;
}
