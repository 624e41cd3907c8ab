/* SPDX-License-Identifier: Apache-2.0
 *
 * What a client asks for: the documents of POST /v1/chat/completions and /v1/completions. Fields
 * that nobody here knows are passed over; what is known and not supported is refused by name.
 */
#ifndef EK_SERVER_REQUEST_H
#define EK_SERVER_REQUEST_H

#include "runtime/runtime.h"

#define REQUEST_STOPS_MAX   16
#define REQUEST_STOP_MAX    256 /* bytes of one */
#define REQUEST_ANSWERS_MAX 128 /* to all of its prompts */
#define REQUEST_BIASES_MAX  1024

/* Of POST /v1/completions: text, or ... */
struct request_prompt {
    const char *text;
    int32_t *ids; /* ... token ids */
    size_t n_ids;
};

struct request {
    json_t *strings; /* those of the document that are pointed to here: it may be much larger */
    bool chat;
    struct ek_message *messages; /* contents are this struct's; "<image>" where a picture
                                  * stands, unless all are before the first user's text */
    size_t n_messages;
    const char **images; /* data: URLs, in order */
    size_t n_images;
    struct request_prompt *prompts; /* not chat */
    size_t n_prompts;               /* 1 of a chat */
    uint32_t n;                     /* answers to each */
    struct ek_sampling sampling;
    bool penalised; /* penalties do something */
    struct ek_penalties penalties;
    uint32_t max_tokens; /* 0: as many as fit */
    bool logprobs;       /* of tokens, and ... */
    uint32_t n_best;     /* ... of so many others at each place */
    bool stream, usage;  /* events as tokens come; a last one with the numbers of tokens */
    const char *stops[REQUEST_STOPS_MAX];
    size_t n_stops;
    int32_t stop_ids[REQUEST_STOPS_MAX];
    size_t n_stop_ids;
    bool ignore_eos; /* and all that end the model's turns */
};
/* Sampling without a seed gets one that nobody can guess. Closed with request_free. */
enum ek_status request_parse(const char *text, size_t n, bool chat, struct request *out);
void request_free(struct request *r); /* zeroes it; a zeroed one is fine */

/* The file in a URL "data:...;base64,...", malloc'd. Others are not fetched, but refused. */
enum ek_status request_image(const char *url, char **data, size_t *n);

#endif
