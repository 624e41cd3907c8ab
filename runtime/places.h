/* SPDX-License-Identifier: Apache-2.0
 *
 * The places of a wave whose sequences come and go (w->past is there). Its cache remembers what has
 * ended at a place until that is taken, and lets sequences that begin alike share blocks.
 */
#ifndef EK_RUNTIME_PLACES_H
#define EK_RUNTIME_PLACES_H

#include "runtime/wave.h"

/* Open sequences of a group. */
uint32_t place_count(const struct wave *w, const struct wave_group *g);
/* For a new prompt the place of the conversation that it goes on from; or else, in the group that
 * has the fewest sequences, the one that holds least of worth. There is one that is free. *kept:
 * tokens of the prompt that its cache holds. */
uint32_t place_choose(const struct wave *w, const struct ek_prompt *p, size_t *kept);
/* Where another place holds more of the prompt's beginning than the sequence, whole blocks of that
 * are taken over instead of computed. */
void place_share(struct wave *w, struct wave_seq *s);
/* What the place's cache holds stays, for a prompt that begins alike; unless others may need the
 * room. */
void place_keep(struct wave *w, uint32_t i);

#endif
