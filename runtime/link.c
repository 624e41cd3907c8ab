/* SPDX-License-Identifier: Apache-2.0
 *
 * Links: hidden states from one device to another. A mechanism is a row of a table, the first that
 * works for a pair is taken; the sender copies into one of a few slots, the receiver copies out of
 * it, and events (never a wait of the host, but in the host-staged form) order the two queues.
 */
#include "runtime/runtime.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN      ((size_t)256)
#define FLAG_BYTES ((size_t)128) /* a line each, so that polling disturbs no neighbour */

struct mechanism;

struct ek_link {
    const struct mechanism *how;
    struct ek_device *from, *to;
    size_t max;                       /* activations in a message */
    atomic_uint_fast64_t sent, taken; /* messages */
    uint64_t reserved;                /* messages whose slot from's queue need not wait for */
    char *slots; /* of all messages: on from, on to (peer stores), or host memory when staged */
    size_t slot_bytes;
    _Atomic uint32_t
        *stop; /* host memory of to: not 0 ends its queue's waits; NULL: none can hang */
    struct ek_channel *channel;            /* of a library, or NULL */
    void *raw;                             /* on to: a message before its conversion, or NULL */
    struct ek_device *slots_of;            /* who allocated slots, host memory when staged */
    struct ek_event *full[EK_LINK_SLOTS];  /* from's queue passed the copy into the slot */
    struct ek_event *empty[EK_LINK_SLOTS]; /* to's queue passed the copy out of it */
};

struct mechanism {
    const char *name;
    bool (*works)(const struct ek_device *from, const struct ek_device *to);
    void (*bytes)(const struct ek_device *from, const struct ek_device *to, size_t max,
                  uint64_t *at_from, uint64_t *at_to); /* before the allocator's padding */
    enum ek_status (*open)(struct ek_link *l);
    enum ek_status (*reserve)(struct ek_link *l, unsigned slot); /* NULL: send waits for the slot */
    enum ek_status (*send)(struct ek_link *l, unsigned slot, const void *src, size_t n,
                           uint64_t *when);
    enum ek_status (*wait)(struct ek_link *l, unsigned slot, uint64_t *when);
    enum ek_status (*recv)(struct ek_link *l, unsigned slot, void *dst, size_t n);
    enum ek_status (*check)(const struct ek_link *l); /* NULL: nothing to tell */
    bool queued;   /* send and recv return before the bytes have moved */
    bool in_place; /* a message lies in to's memory, and may be worked on there */
    bool stamps;   /* send and wait note the time themselves */
};

static size_t act_bytes(const struct ek_device *d, size_t n)
{
    return n * ek_dtype_block_bytes(d->act);
}

static size_t message_bytes(const struct ek_device *from, size_t max)
{
    return ek_round_up(act_bytes(from, max), ALIGN);
}

static void *slot_at(const struct ek_link *l, unsigned slot)
{
    return l->slots + slot * l->slot_bytes;
}

static enum ek_status open_events(struct ek_link *l)
{
    for (int i = 0; i < EK_LINK_SLOTS; i++) {
        EK_TRY(l->from->ops->event_order(l->from, &l->full[i]));
        EK_TRY(l->to->ops->event_order(l->to, &l->empty[i]));
    }
    return EK_OK;
}

/* ---- one device: its queue orders everything */
static bool same_works(const struct ek_device *from, const struct ek_device *to)
{
    return from == to;
}

static void slots_at_from(const struct ek_device *from, const struct ek_device *to, size_t max,
                          uint64_t *at_from, uint64_t *at_to)
{
    (void)to;
    *at_from = EK_LINK_SLOTS * message_bytes(from, max);
    *at_to = 0;
}

static enum ek_status same_open(struct ek_link *l)
{
    l->slots_of = l->from;
    return l->from->ops->alloc(l->from, EK_TAG_COMM, EK_LINK_SLOTS * l->slot_bytes,
                               (void **)&l->slots);
}

static enum ek_status same_send(struct ek_link *l, unsigned slot, const void *src, size_t n,
                                uint64_t *when)
{
    (void)when;
    return l->from->ops->copy(l->from, slot_at(l, slot), src, act_bytes(l->from, n));
}

static enum ek_status same_wait(struct ek_link *l, unsigned slot, uint64_t *when)
{
    (void)when;
    (void)l;
    (void)slot;
    return EK_OK;
}

static enum ek_status same_recv(struct ek_link *l, unsigned slot, void *dst, size_t n)
{
    if (dst == slot_at(l, slot))
        return EK_OK;
    return l->to->ops->copy(l->to, dst, slot_at(l, slot), act_bytes(l->to, n));
}

/* ---- the sender stores into the receiver's memory and raises a flag there, which the receiver's
 * queue waits for; an event frees the slot */
static bool store_works(const struct ek_device *from, const struct ek_device *to)
{
    return from->ops->reaches != NULL && from->act == to->act && from->ops->reaches(from, to);
}

static void store_bytes(const struct ek_device *from, const struct ek_device *to, size_t max,
                        uint64_t *at_from, uint64_t *at_to)
{
    (void)to;
    *at_from = 0;
    *at_to = EK_LINK_SLOTS * (message_bytes(from, max) + FLAG_BYTES);
}

/* Number of the newest message in a slot. */
static uint32_t *flag_at(const struct ek_link *l, unsigned slot)
{
    return (void *)(l->slots + EK_LINK_SLOTS * l->slot_bytes + slot * FLAG_BYTES);
}

static enum ek_status store_open(struct ek_link *l)
{
    uint64_t at_from, at_to;

    store_bytes(l->from, l->to, l->max, &at_from, &at_to);
    EK_TRY(open_events(l));
    l->slots_of = l->to;
    EK_TRY(l->to->ops->host_alloc(l->to, sizeof(*l->stop), (void **)&l->stop));
    atomic_store(l->stop, 0);
    EK_TRY(l->to->ops->alloc(l->to, EK_TAG_COMM, at_to, (void **)&l->slots));
    EK_TRY(l->to->ops->zero(l->to, flag_at(l, 0), EK_LINK_SLOTS * FLAG_BYTES));
    return l->to->ops->sync(l->to);
}

/* The queue waits until the message before the last is taken. */
static enum ek_status wait_empty(struct ek_link *l, unsigned slot)
{
    return l->from->ops->event_wait(l->from, l->empty[slot]);
}

static enum ek_status store_send(struct ek_link *l, unsigned slot, const void *src, size_t n,
                                 uint64_t *when)
{
    return l->from->ops->store(l->from, slot_at(l, slot), src, act_bytes(l->from, n),
                               flag_at(l, slot), (uint32_t)(atomic_load(&l->sent) + 1), when);
}

static enum ek_status store_wait(struct ek_link *l, unsigned slot, uint64_t *when)
{
    return l->to->ops->flag_wait(l->to, flag_at(l, slot), (uint32_t)(atomic_load(&l->taken) + 1),
                                 (const uint32_t *)l->stop, when);
}

static enum ek_status store_recv(struct ek_link *l, unsigned slot, void *dst, size_t n)
{
    if (dst != slot_at(l, slot))
        EK_TRY(l->to->ops->copy(l->to, dst, slot_at(l, slot), act_bytes(l->to, n)));
    return l->to->ops->event_record(l->to, l->empty[slot]);
}

/* ---- two devices of a backend that copies between them */
static bool copy_works(const struct ek_device *from, const struct ek_device *to)
{
    return from->ops->copy_from != NULL && from->ops->copy_from == to->ops->copy_from &&
           from->act == to->act;
}

static enum ek_status copy_open(struct ek_link *l)
{
    EK_TRY(open_events(l));
    return same_open(l);
}

static enum ek_status copy_send(struct ek_link *l, unsigned slot, const void *src, size_t n,
                                uint64_t *when)
{
    (void)when;
    EK_TRY(l->from->ops->copy(l->from, slot_at(l, slot), src, act_bytes(l->from, n)));
    return l->from->ops->event_record(l->from, l->full[slot]);
}

static enum ek_status copy_wait(struct ek_link *l, unsigned slot, uint64_t *when)
{
    (void)when;
    return l->to->ops->event_wait(l->to, l->full[slot]);
}

static enum ek_status copy_recv(struct ek_link *l, unsigned slot, void *dst, size_t n)
{
    EK_TRY(l->to->ops->copy_from(l->to, dst, l->from, slot_at(l, slot), act_bytes(l->from, n)));
    return l->to->ops->event_record(l->to, l->empty[slot]);
}

/* ---- a library sends into a slot on the receiver */
static bool channel_works(const struct ek_device *from, const struct ek_device *to)
{
    return from->ops->channel_lacks != NULL && from->act == to->act &&
           from->ops->channel_lacks(from, to) == NULL;
}

static void channel_bytes(const struct ek_device *from, const struct ek_device *to, size_t max,
                          uint64_t *at_from, uint64_t *at_to)
{
    slots_at_from(from, to, max, at_to, at_from);
}

static enum ek_status channel_open(struct ek_link *l)
{
    for (int i = 0; i < EK_LINK_SLOTS; i++) { /* both of the receiver */
        EK_TRY(l->to->ops->event_order(l->to, &l->full[i]));
        EK_TRY(l->to->ops->event_order(l->to, &l->empty[i]));
    }
    l->slots_of = l->to;
    EK_TRY(
        l->to->ops->alloc(l->to, EK_TAG_COMM, EK_LINK_SLOTS * l->slot_bytes, (void **)&l->slots));
    return l->from->ops->channel_open(l->from, l->to, &l->channel);
}

static enum ek_status channel_send(struct ek_link *l, unsigned slot, const void *src, size_t n,
                                   uint64_t *when)
{
    bool first = atomic_load(&l->sent) < EK_LINK_SLOTS;

    (void)when;
    return l->from->ops->channel_send(l->channel, src, slot_at(l, slot), act_bytes(l->from, n),
                                      first ? NULL : l->empty[slot], l->full[slot]);
}

static enum ek_status channel_check(const struct ek_link *l)
{
    return l->from->ops->channel_check(l->channel);
}

/* ---- any two devices, through host memory */
static bool staged_works(const struct ek_device *from, const struct ek_device *to)
{
    (void)from;
    (void)to;
    return true;
}

static void staged_bytes(const struct ek_device *from, const struct ek_device *to, size_t max,
                         uint64_t *at_from, uint64_t *at_to)
{
    *at_from = 0;
    *at_to = from->act == to->act ? 0 : message_bytes(from, max);
}

static enum ek_status staged_open(struct ek_link *l)
{
    uint64_t at_from, raw;

    staged_bytes(l->from, l->to, l->max, &at_from, &raw);
    EK_TRY(open_events(l));
    if (raw > 0)
        EK_TRY(l->to->ops->alloc(l->to, EK_TAG_COMM, raw, &l->raw));
    /* memory that the end with its own memory copies at full speed */
    l->slots_of = l->from->info.compute_major ? l->from : l->to;
    return l->slots_of->ops->host_alloc(l->slots_of, EK_LINK_SLOTS * l->slot_bytes,
                                        (void **)&l->slots);
}

static enum ek_status staged_send(struct ek_link *l, unsigned slot, const void *src, size_t n,
                                  uint64_t *when)
{
    (void)when;
    if (atomic_load(&l->sent) >= EK_LINK_SLOTS)
        EK_TRY(l->to->ops->event_sync(l->empty[slot]));
    return l->from->ops->download(l->from, slot_at(l, slot), src, act_bytes(l->from, n));
}

static enum ek_status staged_recv(struct ek_link *l, unsigned slot, void *dst, size_t n)
{
    void *to = l->raw ? l->raw : dst;

    EK_TRY(l->to->ops->upload(l->to, to, slot_at(l, slot), act_bytes(l->from, n)));
    EK_TRY(l->to->ops->event_record(l->to, l->empty[slot]));
    if (l->raw == NULL)
        return EK_OK;
    return l->to->ops->convert(l->to, l->raw, l->from->act, dst, l->to->act, n);
}

/* ---- the registry, fastest first */
static const struct mechanism mechanisms[] = {
    {.name = "same-device",
     .works = same_works,
     .bytes = slots_at_from,
     .open = same_open,
     .send = same_send,
     .wait = same_wait,
     .recv = same_recv,
     .queued = true,
     .in_place = true},
    {.name = "peer-store",
     .works = store_works,
     .bytes = store_bytes,
     .open = store_open,
     .reserve = wait_empty,
     .send = store_send,
     .wait = store_wait,
     .recv = store_recv,
     .queued = true,
     .in_place = true,
     .stamps = true},
    {.name = "copy",
     .works = copy_works,
     .bytes = slots_at_from,
     .open = copy_open,
     .reserve = wait_empty,
     .send = copy_send,
     .wait = copy_wait,
     .recv = copy_recv,
     .queued = true},
    {.name = "host-staged",
     .works = staged_works,
     .bytes = staged_bytes,
     .open = staged_open,
     .send = staged_send,
     .wait = same_wait,
     .recv = staged_recv},
    /* slower to open, and with memory of its own: only when asked for */
    {.name = "nccl",
     .works = channel_works,
     .bytes = channel_bytes,
     .open = channel_open,
     .send = channel_send,
     .wait = copy_wait,
     .recv = store_recv,
     .check = channel_check,
     .queued = true,
     .in_place = true},
};

size_t ek_link_mechanisms(const struct ek_device *from, const struct ek_device *to,
                          const char *names[EK_LINK_MECHANISMS])
{
    size_t n = 0;

    for (size_t i = 0; i < EK_ARRAY_LEN(mechanisms); i++)
        if (mechanisms[i].works(from, to))
            names[n++] = mechanisms[i].name;
    return n;
}

/* The one that is named, where it works, else the first that does. */
static const struct mechanism *choose(const struct ek_device *from, const struct ek_device *to,
                                      const char *name)
{
    const struct mechanism *first = NULL;

    for (size_t i = EK_ARRAY_LEN(mechanisms); i-- > 0;) {
        bool named = name != NULL && strcmp(name, mechanisms[i].name) == 0;
        if (!named && mechanisms[i].works == channel_works)
            continue; /* not even loaded */
        if (!mechanisms[i].works(from, to))
            continue;
        first = &mechanisms[i];
        if (named)
            return first;
    }
    return first;
}

/* The mechanism that is asked for, whether it works or not; NULL: any, as for a plan from
 * estimates, which names none of these. */
static const char *asked_for(const struct ek_device *from, const struct ek_device *to,
                             const char *wanted)
{
    const char *forced = getenv("EVENKEEL_LINK");
    bool known = false;

    for (size_t i = 0; wanted && i < EK_ARRAY_LEN(mechanisms); i++)
        known |= strcmp(mechanisms[i].name, wanted) == 0;
    return from == to ? NULL : forced ? forced : known ? wanted : NULL;
}

const char *ek_link_pick(const struct ek_device *from, const struct ek_device *to,
                         const char *wanted)
{
    return choose(from, to, asked_for(from, to, wanted))->name;
}

static uint64_t padded(const struct ek_device *dev, uint64_t bytes)
{
    return bytes && dev->ops->alloc_bytes ? dev->ops->alloc_bytes(dev, bytes) : bytes;
}

enum ek_status ek_link_memory(struct ek_device *from, struct ek_device *to, const char *mechanism,
                              size_t max_elements, struct ek_link_bytes *out)
{
    const struct mechanism *how = choose(from, to, mechanism);
    struct ek_link_bytes b = {.at_from = 0};

    how->bytes(from, to, max_elements, &b.at_from, &b.at_to);
    b.at_from = padded(from, b.at_from);
    b.at_to = padded(to, b.at_to);
    if (how->works == channel_works) {
        struct ek_channel_bytes c;
        EK_TRY(from->ops->channel_bytes(from, to, &c));
        b.at_from += c.each[0];
        b.at_to += c.each[1];
        b.once_from = c.once[0];
        b.once_to = c.once[1];
    }
    *out = b;
    return EK_OK;
}

/* What is known of why a mechanism does not work; NULL: nothing. */
static const char *lacks(const struct ek_device *from, const struct ek_device *to,
                         const char *mechanism)
{
    if (strcmp(mechanism, "nccl") != 0 || from->ops->channel_lacks == NULL)
        return NULL;
    return from->ops->channel_lacks(from, to);
}

enum ek_status ek_link_open_as(struct ek_device *from, struct ek_device *to, size_t max_elements,
                               const char *mechanism, struct ek_link **out)
{
    struct ek_link *l;
    enum ek_status st;

    if (max_elements == 0 || max_elements > SIZE_MAX / 64)
        return ek_error(EK_EUSAGE, "link: messages of %zu activations", max_elements);
    if ((l = ek_calloc(1, sizeof(*l))) == NULL)
        return EK_ENOMEM;
    l->from = from;
    l->to = to;
    l->max = max_elements;
    l->slot_bytes = message_bytes(from, max_elements);
    l->how = choose(from, to, mechanism);
    if (mechanism != NULL && strcmp(l->how->name, mechanism) != 0) {
        const char *why = lacks(from, to, mechanism);
        st = ek_error(EK_EUNSUPPORTED, "link %s -> %s: no hand-over by %s%s%s", from->spec.name,
                      to->spec.name, mechanism, why ? ": " : "", why ? why : "");
        goto fail;
    }
    EK_GOTO(l->how->open(l), st, fail);
    *out = l;
    return EK_OK;
fail:
    ek_link_close(l);
    return st;
}

enum ek_status ek_link_open(struct ek_device *from, struct ek_device *to, size_t max_elements,
                            const char *wanted, struct ek_link **out)
{
    const char *asked = asked_for(from, to, wanted);
    enum ek_status st = ek_link_open_as(from, to, max_elements, asked, out);

    if (asked == NULL || st != EK_EUNSUPPORTED)
        return st;
    ek_note("%s; by %s instead", ek_last_error(), choose(from, to, NULL)->name);
    return ek_link_open_as(from, to, max_elements, NULL, out);
}

void ek_link_abandon(struct ek_link *l)
{
    if (l != NULL && l->stop != NULL)
        atomic_store(l->stop, 1);
    if (l != NULL && l->channel != NULL)
        l->from->ops->channel_abort(l->channel);
}

enum ek_status ek_link_check(const struct ek_link *l)
{
    return l->how->check ? l->how->check(l) : EK_OK;
}

void ek_link_close(struct ek_link *l)
{
    if (l == NULL)
        return;
    if (l->channel != NULL)
        l->from->ops->channel_close(l->channel);
    for (int i = 0; i < EK_LINK_SLOTS; i++) {
        if (l->full[i] != NULL)
            l->from->ops->event_free(l->full[i]);
        if (l->empty[i] != NULL)
            l->to->ops->event_free(l->empty[i]);
    }
    if (l->slots != NULL && l->how->open == staged_open)
        l->slots_of->ops->host_free(l->slots_of, l->slots);
    else if (l->slots != NULL)
        l->slots_of->ops->release(l->slots_of, l->slots);
    if (l->raw != NULL)
        l->to->ops->release(l->to, l->raw);
    if (l->stop != NULL)
        l->to->ops->host_free(l->to, (void *)(uintptr_t)l->stop);
    free(l);
}

const char *ek_link_mechanism(const struct ek_link *l)
{
    return l->how->name;
}

bool ek_link_queued(const struct ek_link *l)
{
    return l->how->queued && l->from->ops->graph_begin != NULL && l->to->ops->graph_begin != NULL;
}

bool ek_link_ready(const struct ek_link *l)
{
    return atomic_load(&l->sent) - atomic_load(&l->taken) < EK_LINK_SLOTS;
}

void *ek_link_slot(const struct ek_link *l)
{
    unsigned slot = atomic_load(&l->taken) % EK_LINK_SLOTS;

    return l->how->in_place ? slot_at(l, slot) : NULL;
}

static enum ek_status check_size(const struct ek_link *l, size_t n)
{
    if (n > l->max)
        return ek_error(EK_EUSAGE, "link %s to %s: %zu activations, at most %zu",
                        l->from->spec.name, l->to->spec.name, n, l->max);
    return EK_OK;
}

enum ek_status ek_link_reserve(struct ek_link *l)
{
    uint64_t i = atomic_load(&l->sent);

    if (!ek_link_ready(l))
        return EK_OK;
    if (i >= EK_LINK_SLOTS && l->how->reserve) {
        enum ek_status st = l->to->ops->event_passed(l->empty[i % EK_LINK_SLOTS]);
        if (st != EK_OK)
            return st == EK_NO ? EK_OK : st;
    }
    l->reserved = i + 1;
    return EK_OK;
}

enum ek_status ek_link_send(struct ek_link *l, const void *src, size_t n, uint64_t *when)
{
    uint64_t i = atomic_load(&l->sent);
    bool waits;

    EK_TRY(check_size(l, n));
    if (!ek_link_ready(l))
        return ek_error(EK_EUSAGE, "link %s to %s: no free slot", l->from->spec.name,
                        l->to->spec.name);
    waits = l->reserved <= i && i >= EK_LINK_SLOTS && l->how->reserve;
    if (when != NULL && (waits || !l->how->stamps))
        EK_TRY(l->from->ops->stamp(l->from, when));
    if (waits)
        EK_TRY(l->how->reserve(l, i % EK_LINK_SLOTS));
    EK_TRY(l->how->send(l, i % EK_LINK_SLOTS, src, n, waits ? NULL : when));
    atomic_store(&l->sent, i + 1);
    return EK_OK;
}

enum ek_status ek_link_wait(struct ek_link *l, uint64_t *when)
{
    EK_TRY(l->how->wait(l, atomic_load(&l->taken) % EK_LINK_SLOTS, when));
    return when != NULL && !l->how->stamps ? l->to->ops->stamp(l->to, when) : EK_OK;
}

enum ek_status ek_link_recv(struct ek_link *l, void *dst, size_t n)
{
    uint64_t i = atomic_load(&l->taken);

    EK_TRY(check_size(l, n));
    if (i >= atomic_load(&l->sent))
        return ek_error(EK_EUSAGE, "link %s to %s: nothing was sent", l->from->spec.name,
                        l->to->spec.name);
    EK_TRY(l->how->recv(l, i % EK_LINK_SLOTS, dst, n));
    atomic_store(&l->taken, i + 1);
    return EK_OK;
}
