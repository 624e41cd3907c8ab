/* SPDX-License-Identifier: Apache-2.0
 *
 * Host memory for copies, kept from picture to picture.
 */
#include "runtime/engine.h"

#include <stdlib.h>

#define MOST_KEPT 4

static void block_free(struct engine_block *b)
{
    if (b->data != NULL)
        b->dev->ops->host_free(b->dev, b->data);
    free(b);
}

/* The smallest that will do, out of the list; the lock is held. */
static struct engine_block *pick(struct ek_engine *e, const struct ek_device *dev, size_t bytes)
{
    struct engine_block **best = NULL, *b;

    for (struct engine_block **at = &e->vision.blocks; *at != NULL; at = &(*at)->next)
        if ((*at)->dev == dev && (*at)->bytes >= bytes &&
            (best == NULL || (*at)->bytes < (*best)->bytes))
            best = at;
    if (best == NULL)
        return NULL;
    b = *best;
    *best = b->next;
    return b;
}

enum ek_status engine_block_take(struct ek_engine *e, struct ek_device *dev, size_t bytes,
                                 struct engine_block **out)
{
    struct engine_block *b;
    enum ek_status st;

    pthread_mutex_lock(&e->lock);
    b = pick(e, dev, bytes);
    pthread_mutex_unlock(&e->lock);
    if (b == NULL) {
        if ((b = ek_calloc(1, sizeof(*b))) == NULL)
            return EK_ENOMEM;
        *b = (struct engine_block){.e = e, .dev = dev, .bytes = bytes};
        st = dev->ops->host_alloc(dev, bytes, &b->data);
        if (st != EK_OK) {
            free(b);
            return st;
        }
    }
    b->next = NULL;
    *out = b;
    return EK_OK;
}

/* The newest are kept: the next pictures are most likely as large. */
void engine_block_give(struct engine_block *b)
{
    struct engine_block *oldest = NULL, **at;
    struct ek_engine *e;
    size_t n = 0;

    if (b == NULL)
        return;
    e = b->e;
    pthread_mutex_lock(&e->lock);
    b->next = e->vision.blocks;
    e->vision.blocks = b;
    for (at = &e->vision.blocks; *at != NULL && n < MOST_KEPT; at = &(*at)->next)
        n++;
    oldest = *at;
    *at = NULL;
    pthread_mutex_unlock(&e->lock);
    if (oldest != NULL)
        block_free(oldest);
}

void engine_blocks_free(struct ek_engine *e)
{
    for (struct engine_block *b = e->vision.blocks, *next; b != NULL; b = next) {
        next = b->next;
        block_free(b);
    }
    e->vision.blocks = NULL;
}
