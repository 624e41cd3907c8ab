/* SPDX-License-Identifier: Apache-2.0 */
#include "server/prompt.h"

#include <stdlib.h>
#include <string.h>

static enum ek_status read_images(const struct ek_vl_rules *rules, const struct request *r,
                                  struct server_prompt *p)
{
    if (r->n_images == 0)
        return EK_OK;
    if (rules == NULL)
        return ek_error(EK_EUNSUPPORTED, "request: the model takes no pictures");
    if ((p->images = ek_calloc(r->n_images, sizeof(*p->images))) == NULL)
        return EK_ENOMEM;
    for (; p->n_images < r->n_images; p->n_images++) {
        char *data, where[32];
        size_t n;
        enum ek_status st;
        snprintf(where, sizeof(where), "picture %zu", p->n_images);
        EK_TRY(request_image(r->images[p->n_images], &data, &n));
        st = ek_image_decode(data, n, where, &rules->decode, &p->images[p->n_images]);
        free(data);
        EK_TRY(st);
    }
    return EK_OK;
}

static enum ek_status encode_given(const struct ek_tokenizer *t, const struct request_prompt *given,
                                   struct server_prompt *p)
{
    if (given->text != NULL)
        return ek_tokenizer_encode(t, given->text, strlen(given->text),
                                   EK_ENCODE_SPECIAL | EK_ENCODE_BOS, &p->ids, &p->n_ids);
    if ((p->ids = ek_calloc(given->n_ids, sizeof(*p->ids))) == NULL)
        return EK_ENOMEM;
    memcpy(p->ids, given->ids, given->n_ids * sizeof(*p->ids));
    p->n_ids = given->n_ids;
    return EK_OK;
}

static enum ek_status encode(const struct ek_tokenizer *t, const struct ek_vl_rules *rules,
                             const struct request *r, size_t i, struct server_prompt *p)
{
    if (!r->chat)
        return encode_given(t, &r->prompts[i], p);
    if (r->n_images > 0)
        return ek_vl_chat_encode(t, rules, r->messages, r->n_messages, r->n_images, 0, &p->ids,
                                 &p->n_ids);
    return ek_chat_encode(t, r->messages, r->n_messages, &p->ids, &p->n_ids);
}

/* With the pictures, each of which has one place among the ids. */
static enum ek_status check_length(const struct ek_engine *e, const struct ek_vl_rules *rules,
                                   const struct server_prompt *p)
{
    uint32_t context = ek_engine_max_context(e);
    uint64_t n = p->n_ids;

    if (n == 0)
        return ek_error(EK_EUSAGE, "request: the prompt is empty");
    for (size_t i = 0; i < p->n_images; i++) {
        struct ek_visual v;
        EK_TRY(ek_vl_measure(rules, p->images[i].width, p->images[i].height, 1, false, p->n_images,
                             &v));
        n += v.n_tokens - 1;
    }
    return n <= context
               ? EK_OK
               : ek_error(EK_NO, "request: the prompt has %llu tokens, at most %u possible",
                          (unsigned long long)n, context);
}

static enum ek_status check(const struct ek_engine *e, const struct ek_vl_rules *rules,
                            const struct server_prompt *p)
{
    uint32_t vocab = ek_engine_model(e)->config.vocab;

    EK_TRY(check_length(e, rules, p));
    for (size_t i = 0; i < p->prompt.n; i++)
        if ((uint32_t)p->prompt.ids[i] >= vocab)
            return ek_error(EK_EUSAGE, "request: token id %d, the vocabulary ends at %u",
                            p->prompt.ids[i], vocab);
    for (size_t i = 0; rules && p->n_images == 0 && i < p->prompt.n; i++)
        if (p->prompt.ids[i] == rules->image_id || p->prompt.ids[i] == rules->video_id)
            return ek_error(EK_EUSAGE, "request: the prompt names pictures, 0 are given");
    return EK_OK;
}

static enum ek_status look(struct ek_engine *e, const struct ek_vl_rules *rules,
                           struct server_prompt *p)
{
    struct ek_vl_item *items = ek_calloc(p->n_images, sizeof(*items));
    enum ek_status st;

    if (items == NULL)
        return EK_ENOMEM;
    for (size_t i = 0; i < p->n_images; i++)
        items[i] = (struct ek_vl_item){.frames = &p->images[i], .n_frames = 1};
    st = ek_vision_prompt_open(e, rules, p->ids, p->n_ids, items, p->n_images, &p->vision);
    free(items);
    if (st == EK_OK)
        p->prompt = p->vision.prompt;
    return st;
}

enum ek_status server_prompt_open(struct ek_engine *e, const struct ek_tokenizer *t,
                                  const struct ek_vl_rules *rules, const struct request *r,
                                  size_t i, struct server_prompt *p)
{
    *p = (struct server_prompt){0};
    EK_TRY(read_images(rules, r, p));
    EK_TRY(encode(t, rules, r, i, p));
    p->prompt = (struct ek_prompt){.ids = p->ids, .n = p->n_ids};
    EK_TRY(check(e, rules, p));
    return p->n_images > 0 ? look(e, rules, p) : EK_OK;
}

void server_prompt_close(struct server_prompt *p)
{
    ek_vision_prompt_close(&p->vision);
    for (size_t i = 0; i < p->n_images; i++)
        ek_image_free(&p->images[i]);
    free(p->images);
    free(p->ids);
    *p = (struct server_prompt){0};
}
