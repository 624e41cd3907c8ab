/* SPDX-License-Identifier: Apache-2.0
 *
 * Loading: several threads take pieces of tensors in the order of the file and read (or make, or
 * repack) them into a ring of pinned memory; this thread sends what is there to the device, in the
 * same order, pieces that follow one another as one, and gives the ring's room back when they have
 * arrived. A device whose memory is the host's is read into in place. Each byte of the checkpoint
 * is read once.
 */
#define _GNU_SOURCE
#include "runtime/vision.h"
#include "runtime/weights.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PIECE ((size_t)1 << 20)  /* bytes read at once; rows are never cut */
#define SENT  ((size_t)4 << 20)  /* bytes sent at once, if more than one piece */
#define RING  ((size_t)32 << 20) /* bytes, or a little over twice the largest piece */
#define ALIGN ((size_t)64)       /* of pieces in the ring */
#define STACK ((size_t)1 << 20)  /* of a reader: small ones are kept for the next */
enum { MOST_READERS = 12, IN_FLIGHT = 32, MESSAGE = 1024 };

struct piece { /* rows of a matrix, or a whole vector */
    const struct load *l;
    size_t at, n;
    uint64_t pos; /* on the way round the ring: pos % ring_bytes is its place */
};

struct sent { /* is on its way to the device */
    struct ek_event *arrived;
    uint64_t end; /* of its last piece */
};

struct loader {
    const struct ek_model *m;
    struct ek_device *dev;
    int what;
    struct piece *pieces;
    size_t n, cap;
    bool in_place; /* read into where it belongs: no ring */
    char *ring;
    size_t ring_bytes, n_readers;
    struct sent flight[IN_FLIGHT]; /* flight[oldest..newest) % IN_FLIGHT */
    size_t oldest, newest;
    double busy_s;                /* from the first piece to the last */
    atomic_bool *ready;           /* of each piece: it lies in the ring */
    atomic_size_t next;           /* piece to be read */
    atomic_uint_fast64_t arrived; /* all before that have arrived: the ring's room is free again */
    atomic_bool stop;             /* something failed */
};

struct reader { /* readers[i] starts 2i + 1 and 2i + 2 */
    struct loader *loader;
    struct reader *readers;
    size_t id;
    pthread_t thread;
    bool running;
    enum ek_status status;
    char message[MESSAGE];
};

/* ---- pieces -------------------------------------------------------------------------------------
 */
static int file_order(const void *a, const void *b)
{
    const struct ek_tensor *x = ((const struct load *)a)->t, *y = ((const struct load *)b)->t;

    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static size_t pitch_of(const struct load *l)
{
    return l->mat->bytes / l->mat->rows;
}

/* Bytes of a row of the checkpoint: the matrix may have more columns. */
static enum ek_status row_of(const struct load *l, size_t *out)
{
    return ek_dtype_bytes(l->mat->dtype, l->cols ? l->cols : l->mat->cols, out);
}

static enum ek_status add_piece(struct loader *o, const struct load *l, size_t at, size_t n)
{
    EK_TRY(ek_grow((void **)&o->pieces, &o->cap, o->n + 1, sizeof(*o->pieces), (size_t)1 << 26));
    o->pieces[o->n++] = (struct piece){.l = l, .at = at, .n = n};
    return EK_OK;
}

static enum ek_status cut(struct loader *o, const struct load *l)
{
    size_t step, row, rows;

    if (!l->mat)
        return add_piece(o, l, 0, l->t->shape[l->order]);
    EK_TRY(row_of(l, &row));
    rows = l->t->bytes / row;
    step = pitch_of(l) > PIECE ? 1 : PIECE / pitch_of(l);
    for (size_t at = 0; at < rows; at += step)
        EK_TRY(add_piece(o, l, at, rows - at < step ? rows - at : step));
    return EK_OK;
}

/* Bytes that a piece takes on the device, and in a buffer before. */
static size_t piece_bytes(const struct piece *p)
{
    return p->n * (p->l->mat ? pitch_of(p->l) : sizeof(float));
}

/* Gives each piece its place on the way round the ring, none across the ring's end. */
static void lay_out(struct loader *o)
{
    size_t largest = 0, least;
    uint64_t at = 0;

    for (size_t i = 0; i < o->n; i++)
        if (piece_bytes(&o->pieces[i]) > largest)
            largest = piece_bytes(&o->pieces[i]);
    least = 2 * largest + ALIGN; /* a piece, what is left out at the end, what fills up the last */
    o->ring_bytes = ek_round_up(least > RING ? least : RING, ALIGN);
    for (size_t i = 0; i < o->n; i++) {
        size_t bytes = piece_bytes(&o->pieces[i]), left = o->ring_bytes - at % o->ring_bytes;

        at += left < bytes ? left : 0;
        o->pieces[i].pos = at;
        at = ek_round_up(at + bytes, ALIGN);
    }
    if (at < o->ring_bytes)
        o->ring_bytes = at;
}

/* ---- waiting ------------------------------------------------------------------------------------
 */
/* What is waited for takes microseconds, or with slow storage much longer. */
static void wait_a_little(unsigned *times)
{
    const struct timespec t = {.tv_nsec = 20000};

    if ((*times)++ < 200)
        sched_yield();
    else
        nanosleep(&t, NULL);
}

/* The piece's place in the ring when it is free; NULL: something failed. */
static char *wait_for_room(struct loader *o, const struct piece *p)
{
    uint64_t end = p->pos + piece_bytes(p);
    unsigned times = 0;

    while (end > atomic_load(&o->arrived) + o->ring_bytes && !atomic_load(&o->stop))
        wait_a_little(&times);
    return atomic_load(&o->stop) ? NULL : o->ring + p->pos % o->ring_bytes;
}

/* ---- one piece ----------------------------------------------------------------------------------
 */
/* n rows, packed, to rows that begin pitch bytes apart; the gaps are zeros. */
static void spread_rows(char *buffer, size_t n, size_t row, size_t pitch)
{
    for (size_t i = n; i-- > 0;) {
        memmove(buffer + i * pitch, buffer + i * row, row);
        memset(buffer + i * pitch + row, 0, pitch - row);
    }
}

static enum ek_status read_rows(const struct ek_model *m, const struct piece *p, char *out)
{
    const struct load *l = p->l;
    size_t pitch = pitch_of(l), row;

    EK_TRY(row_of(l, &row));
    EK_TRY(ek_model_read(m, l->t, p->at * row, p->n * row, out));
    if (l->interleaved > 1)
        EK_TRY(vision_part_columns(l, out, p->n * row));
    if (pitch > row)
        spread_rows(out, p->n, row, pitch);
    return EK_OK;
}

static enum ek_status read_vector(const struct ek_model *m, const struct piece *p, char *out)
{
    const struct ek_tensor *t = p->l->t;
    enum ek_status st;
    void *raw;

    if (p->l->order) {
        memcpy(out, t->order, p->n * sizeof(*t->order));
        return EK_OK;
    }
    if ((raw = ek_calloc(1, t->bytes)) == NULL)
        return EK_ENOMEM;
    st = ek_model_read(m, t, 0, t->bytes, raw);
    if (st == EK_OK)
        st = ek_dequantize(t->dtype, raw, (float *)(void *)out, p->n);
    free(raw);
    return st;
}

static char *place_of(const struct piece *p)
{
    const struct load *l = p->l;

    return l->mat ? (char *)l->mat->data + (l->row0 + p->at) * pitch_of(l) : (char *)l->vec;
}

static enum ek_status read_piece(struct loader *o, size_t i)
{
    const struct piece *p = &o->pieces[i];
    char *to = o->in_place ? place_of(p) : wait_for_room(o, p);

    if (to != NULL && o->what & LOAD_READ)
        EK_TRY((p->l->mat ? read_rows : read_vector)(o->m, p, to));
    atomic_store(&o->ready[i], true);
    return EK_OK;
}

/* ---- readers ------------------------------------------------------------------------------------
 */
static void *read_all(void *arg);

/* Where threads cannot be had, those that there are do. */
static void start_reader(struct loader *o, struct reader *readers, size_t id)
{
    struct reader *r = &readers[id];
    pthread_attr_t small;

    if (id >= o->n_readers)
        return;
    *r = (struct reader){.loader = o, .readers = readers, .id = id};
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK);
    r->running = pthread_create(&r->thread, &small, read_all, r) == 0;
    pthread_attr_destroy(&small);
}

static void *read_all(void *arg)
{
    struct reader *r = arg;
    struct loader *o = r->loader;
    size_t i;

    start_reader(o, r->readers, 2 * r->id + 1);
    start_reader(o, r->readers, 2 * r->id + 2);
    while (r->status == EK_OK && !atomic_load(&o->stop) &&
           (i = atomic_fetch_add(&o->next, 1)) < o->n)
        r->status = read_piece(o, i);
    if (r->status != EK_OK) {
        atomic_store(&o->stop, true);
        snprintf(r->message, sizeof(r->message), "%s", ek_last_error());
    }
    return NULL;
}

static size_t count_readers(const struct loader *o)
{
    cpu_set_t cores;
    size_t n = 1;

    if (sched_getaffinity(0, sizeof(cores), &cores) == 0)
        n = (size_t)CPU_COUNT(&cores);
    n = n > MOST_READERS ? MOST_READERS : n;
    return n > o->n ? o->n : n;
}

/* A reader that was joined has started those that it does. st: of this thread, whose message is the
 * last error. */
static enum ek_status join_readers(struct loader *o, struct reader *readers, enum ek_status st)
{
    for (size_t i = 0; i < o->n_readers; i++) {
        if (readers[i].running)
            pthread_join(readers[i].thread, NULL);
        if (st == EK_OK && readers[i].status != EK_OK)
            st = ek_error(readers[i].status, "%s", readers[i].message);
    }
    return st;
}

/* ---- sending ------------------------------------------------------------------------------------
 */
/* Waits for what was sent first. */
static enum ek_status retire(struct loader *o)
{
    struct sent *s = &o->flight[o->oldest++ % IN_FLIGHT];

    EK_TRY(o->dev->ops->event_sync(s->arrived));
    atomic_store(&o->arrived, s->end);
    return EK_OK;
}

/* b follows a in the ring and on the device. */
static bool follows(const struct loader *o, const struct piece *a, const struct piece *b)
{
    size_t bytes = piece_bytes(a);

    return b->pos == a->pos + bytes && b->pos % o->ring_bytes != 0 &&
           place_of(b) == place_of(a) + bytes;
}

/* Sends piece *i and those behind it that are there and follow; *i: the next one. */
static enum ek_status send(struct loader *o, size_t *i)
{
    const struct piece *first = &o->pieces[*i], *last = first;
    size_t bytes = piece_bytes(first);
    struct sent *s;

    for (*i += 1; *i < o->n && atomic_load(&o->ready[*i]) && follows(o, last, last + 1) &&
                  bytes + piece_bytes(last + 1) <= SENT;
         *i += 1)
        bytes += piece_bytes(++last);
    if (o->newest - o->oldest == IN_FLIGHT)
        EK_TRY(retire(o));
    s = &o->flight[o->newest++ % IN_FLIGHT];
    s->end = last->pos + piece_bytes(last);
    if (!(o->what & LOAD_SEND))
        return EK_OK; /* the event has never been recorded: nothing to wait for */
    EK_TRY(
        o->dev->ops->upload(o->dev, place_of(first), o->ring + first->pos % o->ring_bytes, bytes));
    return o->dev->ops->event_record(o->dev, s->arrived);
}

static enum ek_status send_all(struct loader *o)
{
    unsigned times = 0;
    size_t i = 0;

    while (i < o->n && !atomic_load(&o->stop)) {
        if (atomic_load(&o->ready[i])) {
            EK_TRY(send(o, &i));
            times = 0;
        } else if (o->oldest < o->newest) {
            EK_TRY(retire(o));
        } else {
            wait_a_little(&times);
        }
    }
    while (o->oldest < o->newest)
        EK_TRY(retire(o));
    return EK_OK;
}

/* ---- all of them --------------------------------------------------------------------------------
 */
static void close_ring(struct loader *o)
{
    stage_drain(o->dev); /* pieces may be on their way */
    for (size_t i = 0; i < IN_FLIGHT; i++)
        if (o->flight[i].arrived != NULL)
            o->dev->ops->event_free(o->flight[i].arrived);
    o->dev->ops->host_free(o->dev, o->ring);
}

static enum ek_status open_ring(struct loader *o)
{
    EK_TRY(o->dev->ops->host_alloc(o->dev, o->ring_bytes, (void **)&o->ring));
    for (size_t i = 0; i < IN_FLIGHT; i++)
        EK_TRY(o->dev->ops->event_order(o->dev, &o->flight[i].arrived));
    return EK_OK;
}

static enum ek_status move_all(struct loader *o, struct reader *readers)
{
    enum ek_status st = EK_OK;

    start_reader(o, readers, 0);
    if (!readers[0].running)
        return ek_error(EK_EENV, "no thread can be started to read weights");
    if (!o->in_place)
        st = send_all(o);
    if (st != EK_OK)
        atomic_store(&o->stop, true);
    return join_readers(o, readers, st);
}

static enum ek_status load_pieces(struct loader *o)
{
    struct reader *readers = ek_calloc(o->n_readers, sizeof(*readers));
    enum ek_status st = EK_ENOMEM;
    uint64_t begin;

    o->ready = ek_calloc(o->n, sizeof(*o->ready));
    if (readers == NULL || o->ready == NULL)
        goto done;
    if (!o->in_place)
        EK_GOTO(open_ring(o), st, done);
    begin = ek_now_ns();
    st = move_all(o, readers);
    o->busy_s = (double)(ek_now_ns() - begin) * 1e-9;
done:
    close_ring(o);
    free(o->ready);
    free(readers);
    return st;
}

/* busy_s: without the ring's making. */
static enum ek_status load_timed(const struct ek_model *m, struct ek_device *dev,
                                 struct load *loads, size_t n, int what, double *busy_s)
{
    struct loader o = {.m = m, .dev = dev, .what = what};
    enum ek_status st = EK_OK;

    if (n > 0) /* a stage of a borrowed head alone has none */
        qsort(loads, n, sizeof(*loads), file_order);
    for (size_t i = 0; i < n && st == EK_OK; i++)
        st = cut(&o, &loads[i]);
    o.in_place = dev->ops->host && what == (LOAD_READ | LOAD_SEND);
    o.n_readers = count_readers(&o);
    lay_out(&o);
    if (st == EK_OK && o.n > 0)
        st = load_pieces(&o);
    free(o.pieces);
    *busy_s = o.busy_s;
    return st;
}

enum ek_status load_all(const struct ek_model *m, struct ek_device *dev, struct load *loads,
                        size_t n, int what)
{
    double skip;

    return load_timed(m, dev, loads, n, what, &skip);
}

/* Of one thing alone: without the ring's making. Of loading: with everything that it takes. */
static enum ek_status timed(const struct ek_model *m, struct ek_device *dev, struct load *loads,
                            size_t n, int what, bool cold, double *seconds)
{
    uint64_t begin;

    EK_TRY(ek_model_cache(m, !cold));
    begin = ek_now_ns();
    EK_TRY(load_timed(m, dev, loads, n, what, seconds));
    if (what == (LOAD_READ | LOAD_SEND))
        *seconds = (double)(ek_now_ns() - begin) * 1e-9;
    return EK_OK;
}

enum ek_status load_measured(const struct ek_model *m, struct ek_device *dev, struct load *loads,
                             size_t n, struct ek_load_times *out)
{
    double first;

    out->bytes = 0;
    for (size_t i = 0; i < n; i++)
        out->bytes += loads[i].t->bytes;
    EK_TRY(timed(m, dev, loads, n, LOAD_SEND, out->cold, &first)); /* memory is touched */
    EK_TRY(timed(m, dev, loads, n, LOAD_SEND, out->cold, &out->send_s));
    EK_TRY(timed(m, dev, loads, n, LOAD_READ, out->cold, &out->read_s));
    return timed(m, dev, loads, n, LOAD_READ | LOAD_SEND, out->cold, &out->load_s);
}
