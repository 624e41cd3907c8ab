/* SPDX-License-Identifier: Apache-2.0
 *
 * One of the answers that a request asks for: a job of the queue, whose tokens become text and,
 * where that is wanted, events.
 */
#ifndef EK_SERVER_CHOICE_H
#define EK_SERVER_CHOICE_H

#include "server/answer.h"
#include "server/queue.h"

struct choice {
    struct queue *queue;
    struct job job; /* its generation and its counter of moves are set by the client */
    struct ek_decoder *decoder;
    struct answer answer;
    size_t read; /* tokens of the job that are in the answer */
    bool put;    /* the job is in the queue */
    bool begun;  /* the first event is out */
};
/* vocab: of the model. Closed with choice_close, also where it fails. */
enum ek_status choice_open(struct choice *c, struct queue *q, const struct reply *r, uint32_t index,
                           const struct ek_tokenizer *t, uint32_t vocab);
void choice_close(struct choice *c); /* a zeroed one is fine */
void choice_put(struct choice *c);
void choice_leave(struct choice *c); /* no more of it is wanted; does not wait for its end */
/* Takes what there is of it, and appends the events that it makes, where these are wanted. It is
 * over where its answer has a reason to finish. What the job failed with; what is wrong with the
 * queue, as this thread's last message. */
enum ek_status choice_follow(struct choice *c, struct text *events);

#endif
