/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Hardware that is not at hand: descriptions of cards, and costs estimated from them by roofline.
 * Everything made here is marked an estimate.
 */
#ifndef EK_PLANNER_HARDWARE_H
#define EK_PLANNER_HARDWARE_H

#include "planner/planner.h"

struct ek_card {
    char name[32];
    uint64_t memory, overhead;            /* bytes; context and libraries */
    double bandwidth;                     /* bytes/s of its memory */
    double peak_f32, peak_f16, peak_bf16; /* FLOP/s; 0: the type is not supported */
    double link_alpha, link_beta;         /* to another card of the host: seconds, bytes/s */
    const char *link, *source;
    bool shared; /* memory is the host's */
};
#define EK_FLEET_MAX 16
struct ek_fleet {
    const struct ek_card *cards[EK_FLEET_MAX];
    uint32_t counts[EK_FLEET_MAX];
    size_t n;
};
size_t ek_cards(const struct ek_card **out); /* the built-in ones */
enum ek_status ek_cards_from_json(const json_t *root, const char *where, struct ek_card **out,
                                  size_t *n);
enum ek_status ek_cards_read(const char *path, struct ek_card **out, size_t *n);
/* "8x rtx4090, a100-40": cards of more first, then the built-in ones. */
enum ek_status ek_hardware_parse(const char *text, const struct ek_card *more, size_t n_more,
                                 struct ek_fleet *out);
/* Costs of a model on a fleet from FLOPs, bytes and the cards' ceilings. max_tp: tensor-parallel
 * degrees up to this are estimated too, where they divide the heads. */
enum ek_status ek_costs_estimate(const struct ek_model *m, const struct ek_fleet *f,
                                 const char *act, const char *cache, uint32_t max_tp,
                                 struct ek_costs **out);
/* The same from measured rows of one device of a profile (the first that was chosen), scaled to
 * each card by roofline. Measured at types of their own; act and cache are those of the plan. */
enum ek_status ek_costs_scale(const struct ek_model *m, struct ek_store *store,
                              const struct ek_profile_choice *choice, const struct ek_fleet *f,
                              const char *act, const char *cache, uint32_t max_tp,
                              struct ek_costs **out);

/* ---- Roofline of one step of a module -----------------------------------------------------------
 */
#define EK_LAUNCH_SECONDS 12e-6 /* of one module's operations on a GPU */
struct ek_step_shape {
    uint32_t sequences, tokens, context, tp;
    enum ek_dtype act, cache;
};
/* Rows that a module sees of a prefill step: a chain's norm and head see one a sequence. */
uint32_t ek_step_rows(const struct ek_module *mod, uint32_t tokens);
/* Seconds at all of the card's bandwidth or peak, whichever takes longer. */
double ek_step_floor(const struct ek_model *m, const struct ek_module *mod,
                     const struct ek_card *card, const struct ek_step_shape *s);
/* ... and of its all-reduces in a tensor-parallel group. */
double ek_step_reduce(const struct ek_model *m, const struct ek_module *mod,
                      const struct ek_card *card, const struct ek_step_shape *s);

#endif
