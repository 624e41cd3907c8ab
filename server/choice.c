/* SPDX-License-Identifier: Apache-2.0 */
#include "server/choice.h"

enum ek_status choice_open(struct choice *c, struct queue *q, const struct reply *r, uint32_t index,
                           const struct ek_tokenizer *t, uint32_t vocab)
{
    const struct request *request = r->request;

    c->queue = q;
    c->job.scored = request->logprobs;
    c->job.n_best = request->n_best;
    c->job.vocab = vocab;
    if ((c->decoder = ek_decoder_new(t, true)) == NULL)
        return EK_ENOMEM;
    return answer_open(&c->answer, r, index, t);
}

void choice_close(struct choice *c)
{
    if (c->put)
        queue_leave(c->queue, &c->job);
    answer_close(&c->answer);
    ek_decoder_free(c->decoder);
}

void choice_leave(struct choice *c)
{
    if (c->put)
        queue_cancel(c->queue, &c->job, false);
}

void choice_put(struct choice *c)
{
    c->put = true;
    queue_put(c->queue, &c->job);
}

/* The token ends the answer, and is no part of it. */
static bool is_stop(const struct choice *c, int32_t id)
{
    const struct ek_generate_options *o = &c->job.generation.opt;

    for (size_t i = 0; i < o->n_stop; i++)
        if (o->stop[i] == id)
            return true;
    return false;
}

/* Tokens up to n into the answer. */
static enum ek_status take_tokens(struct choice *c, size_t n)
{
    struct scored scores[1 + SCORE_MOST];
    const char *text;

    for (; c->read < n && !c->answer.stopped; c->read++) {
        int32_t id = queue_token(c->queue, &c->job, c->read, scores);
        if (is_stop(c, id))
            continue;
        if (c->job.scored)
            EK_TRY(answer_score(&c->answer, scores));
        EK_TRY(ek_decoder_push(c->decoder, id, &text));
        EK_TRY(answer_add(&c->answer, text));
    }
    return EK_OK;
}

/* What can be said by now, where anything is new. */
static enum ek_status put_piece(struct choice *c, struct text *events)
{
    size_t ready = answer_ready(&c->answer);
    bool first = !c->begun;

    if (!c->answer.reply->request->stream ||
        (ready == c->answer.sent && !first && c->answer.finish == NULL))
        return EK_OK;
    c->begun = true;
    EK_TRY(answer_event(&c->answer, ready, first, events));
    c->answer.sent = ready;
    return EK_OK;
}

/* After its last token, or before its stop string. */
static enum ek_status finish(struct choice *c)
{
    c->answer.finish = "stop";
    if (c->answer.stopped) {
        queue_cancel(c->queue, &c->job, true);
        return EK_OK;
    }
    if (c->job.generation.out.finish == EK_FINISH_LENGTH)
        c->answer.finish = "length";
    return answer_add(&c->answer, ek_decoder_flush(c->decoder));
}

enum ek_status choice_follow(struct choice *c, struct text *events)
{
    bool ended, failed, news;
    size_t n;

    if (c->answer.finish != NULL)
        return EK_OK;
    ended = queue_progress(c->queue, &c->job, &n);
    news = n > c->read;
    EK_TRY(take_tokens(c, n));
    failed = ended && !c->answer.stopped && c->job.status != EK_OK;
    if (!failed && (ended || c->answer.stopped))
        EK_TRY(finish(c));
    if (news || c->answer.finish != NULL)
        EK_TRY(put_piece(c, events));
    return failed ? queue_reason(c->queue, &c->job) : EK_OK;
}
