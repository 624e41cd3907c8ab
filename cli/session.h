/* SPDX-License-Identifier: Apache-2.0
 *
 * What run, check and bench share: a model opened under a plan, or whole on one device. */
#ifndef EK_CLI_SESSION_H
#define EK_CLI_SESSION_H

#include "cli/cli.h"
#include "runtime/runtime.h"

struct ek_session {
    struct ek_model *model;
    struct ek_plan *plan;
    struct ek_engine *engine;
};

struct ek_session_need {
    uint32_t batch;                       /* 0: the plan's, or 1 */
    uint32_t context;                     /* tokens of a sequence; 0: the plan's */
    uint32_t chunk;                       /* most tokens of a step without a plan; 0: as it comes */
    const struct ek_tokenizer *tokenizer; /* that must fit the model's embedding, or NULL */
};

/* The model alone, as the option --quantize says, where it is not open yet. */
enum ek_status ek_session_open_model(const struct ek_args *args, const char *model_path,
                                     struct ek_session *s);
/* Opens by the options --plan and --devices; s->model may be open already. On failure *s is to be
 * closed all the same. */
enum ek_status ek_session_open(const struct ek_args *args, const char *model_path,
                               const struct ek_session_need *need, struct ek_session *s);
void ek_session_close(struct ek_session *s);
/* True when an engine could not be closed whole: what runs at the end of a process may wait for its
 * device, for ever. */
bool ek_session_left_alone(void);

#endif
