/* SPDX-License-Identifier: Apache-2.0
 *
 * Between the threads of clients, which wait for tokens, and the one that generates: that one never
 * waits for a client.
 */
#ifndef EK_SERVER_QUEUE_H
#define EK_SERVER_QUEUE_H

#include "server/request.h"
#include "server/score.h"

#include <pthread.h>

struct queue;

/* A prompt and its tokens so far: its client's, until queue_leave. */
struct job {
    struct ek_generation generation; /* prompt, sampling, max_tokens and stops are set by it */
    struct queue *queue;
    struct job *next;
    bool scored;                        /* tokens' log-probabilities are wanted, ... */
    uint32_t n_best;                    /* ... with those of so many others, fewer than vocab */
    uint32_t vocab;                     /* of the model */
    struct scored last[1 + SCORE_MOST]; /* of the next token: the generating thread's */
    uint64_t *moves; /* is counted up with each token and with the end; may be several jobs' */
    int32_t *ids;    /* tokens that were made; the queue's lock covers what follows */
    struct scored *scores; /* [n][1 + n_best] */
    size_t n, cap, scores_cap;
    bool cancelled, enough, ended; /* unwanted; wanted no further; over */
    enum ek_status status;         /* why it ended: EK_OK with generation.out */
    uint64_t since, first;         /* when it was put, and when its first token was there */
};

struct queue {
    pthread_mutex_t lock;
    pthread_cond_t arrived, moved; /* a job; a token or an end */
    struct job *head, *tail;       /* waiting */
    struct job *running;
    const atomic_bool *stop;
    enum ek_status failed; /* EK_OK: generating */
    char message[1024];
    struct queue_numbers { /* waiting and running now; the rest since the beginning */
        uint64_t waiting, running, prompt_tokens, cached_tokens, tokens, first_tokens;
        uint64_t stopped, full, cancelled; /* that ended so */
        double first_token_s, whole_s;     /* sums over those that ended */
    } numbers;
};

void queue_open(struct queue *q, const atomic_bool *stop);
void queue_close(struct queue *q); /* nobody is in it */
/* Generates what is put until *stop or a failure, which it returns after all jobs were told. */
enum ek_status queue_run(struct queue *q, struct ek_engine *e);

/* By clients. */
void queue_put(struct queue *q, struct job *j);
/* Waits until *moves is another number than *seen, but only a moment; *seen: which it is. */
void queue_wait(struct queue *q, const uint64_t *moves, uint64_t *seen);
/* *n: how many tokens there are; returns true when the job has ended. */
bool queue_progress(struct queue *q, const struct job *j, size_t *n);
/* Token i, of those that are there, and, where they are wanted, its log-probabilities, [1 +
 * n_best]. */
int32_t queue_token(struct queue *q, const struct job *j, size_t i, struct scored *scores);
/* No more tokens are wanted, so that it ends soon: what there is answers the client (enough), or it
 * has gone. */
void queue_cancel(struct queue *q, struct job *j, bool enough);
/* Cancels what has not ended, waits for its end, and frees what the job holds. */
void queue_leave(struct queue *q, struct job *j);
/* The status of a job that ended without an answer, and why as this thread's last message. */
enum ek_status queue_reason(struct queue *q, const struct job *j);
struct queue_numbers queue_look(struct queue *q);

#endif
