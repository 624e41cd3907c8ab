/* SPDX-License-Identifier: Apache-2.0
 *
 * Loading: several threads take pieces of tensors in the order of the file, read (or make, or
 * repack) them into pinned memory, and queue their way to the device, two buffers each: reads are
 * in flight while the device takes what was read before. All buffers are one allocation, for
 * pinning costs by the call. A device whose memory is the host's is
 * read into in place. Each byte of the checkpoint is read once.
 */
#define _GNU_SOURCE
#include "runtime/vision.h"
#include "runtime/weights.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define PIECE ((size_t)2 << 20) /* bytes read and sent at once; rows are never cut */
enum { MOST_READERS = 12, MESSAGE = 1024, BUFFER_ALIGN = 4096 };

struct piece { /* rows of a matrix, or a whole vector */
    const struct load *l;
    size_t at, n;
};

struct loader {
    const struct ek_model *m;
    struct ek_device *dev;
    int what;
    struct piece *pieces;
    size_t n, cap, buffer_bytes;
    bool in_place; /* read into where it belongs: no buffers */
    char *buffers; /* two for each reader */
    atomic_size_t next;
    double busy_s;         /* from the first piece to the last, without what buffers take */
    pthread_mutex_t issue; /* one thread issues to a device at a time */
    atomic_bool stop;      /* some reader failed */
};

/* Two staging buffers: one is read into while the device takes the other. */
struct reader {
    struct loader *loader;
    char *buffer[2];
    struct ek_event *taken[2];
    bool busy[2];
    unsigned next;
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

/* ---- buffers ------------------------------------------------------------------------------------
 */
static void reader_close(struct reader *r)
{
    struct ek_device *dev = r->loader->dev;

    for (int i = 0; i < 2; i++)
        if (r->taken[i] != NULL)
            dev->ops->event_free(r->taken[i]);
}

static enum ek_status reader_open(struct reader *r, struct loader *o, size_t which)
{
    *r = (struct reader){.loader = o};
    for (size_t i = 0; i < 2 && !o->in_place; i++) {
        r->buffer[i] = o->buffers + (2 * which + i) * o->buffer_bytes;
        EK_TRY(o->dev->ops->event_new(o->dev, &r->taken[i]));
    }
    return EK_OK;
}

/* The next buffer, free to be written. */
static enum ek_status take_buffer(struct reader *r, char **out)
{
    unsigned i = r->next;

    if (r->busy[i])
        EK_TRY(r->loader->dev->ops->event_sync(r->taken[i]));
    r->busy[i] = false;
    *out = r->buffer[i];
    return EK_OK;
}

static enum ek_status send_buffer(struct reader *r, void *dst, size_t n)
{
    struct ek_device *dev = r->loader->dev;
    unsigned i = r->next;
    enum ek_status st;

    pthread_mutex_lock(&r->loader->issue);
    st = dev->ops->upload(dev, dst, r->buffer[i], n);
    if (st == EK_OK)
        st = dev->ops->event_record(dev, r->taken[i]);
    pthread_mutex_unlock(&r->loader->issue);
    r->busy[i] = true;
    r->next = 1 - i;
    return st;
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

static enum ek_status move_piece(struct reader *r, const struct piece *p)
{
    const struct loader *o = r->loader;
    char *to = place_of(p);

    if (!o->in_place)
        EK_TRY(take_buffer(r, &to));
    if (o->what & LOAD_READ)
        EK_TRY((p->l->mat ? read_rows : read_vector)(o->m, p, to));
    return o->in_place || !(o->what & LOAD_SEND) ? EK_OK
                                                 : send_buffer(r, place_of(p), piece_bytes(p));
}

/* ---- all of them --------------------------------------------------------------------------------
 */
static void *read_all(void *arg)
{
    struct reader *r = arg;
    struct loader *o = r->loader;
    size_t i;

    while (r->status == EK_OK && !atomic_load(&o->stop) &&
           (i = atomic_fetch_add(&o->next, 1)) < o->n)
        r->status = move_piece(r, &o->pieces[i]);
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

/* This thread is the first reader; where threads cannot be had, those that there are do. */
static enum ek_status run_readers(struct reader *readers, size_t n)
{
    enum ek_status st = EK_OK;

    for (size_t i = 1; i < n; i++)
        readers[i].running = pthread_create(&readers[i].thread, NULL, read_all, &readers[i]) == 0;
    read_all(&readers[0]);
    for (size_t i = 0; i < n; i++) {
        if (readers[i].running)
            pthread_join(readers[i].thread, NULL);
        if (st == EK_OK && readers[i].status != EK_OK)
            st = i ? ek_error(readers[i].status, "%s", readers[i].message) : readers[i].status;
    }
    return st;
}

static enum ek_status with_readers(struct loader *o)
{
    size_t n = count_readers(o), opened = 0;
    struct reader *readers = ek_calloc(n, sizeof(*readers));
    enum ek_status st = readers ? EK_OK : EK_ENOMEM;
    uint64_t begin;

    if (st == EK_OK && !o->in_place)
        st = o->dev->ops->host_alloc(o->dev, 2 * n * o->buffer_bytes, (void **)&o->buffers);
    for (; st == EK_OK && opened < n; opened++)
        st = reader_open(&readers[opened], o, opened);
    begin = ek_now_ns();
    if (st == EK_OK)
        st = run_readers(readers, n);
    if (st == EK_OK)
        st = o->dev->ops->sync(o->dev);
    else
        (void)o->dev->ops->sync(o->dev); /* buffers may be on their way; the message stays */
    o->busy_s = (double)(ek_now_ns() - begin) * 1e-9;
    while (opened > 0)
        reader_close(&readers[--opened]);
    o->dev->ops->host_free(o->dev, o->buffers);
    free(readers);
    return st;
}

static enum ek_status load_timed(const struct ek_model *m, struct ek_device *dev,
                                 struct load *loads, size_t n, int what, double *busy_s)
{
    struct loader o = {.m = m, .dev = dev, .what = what, .buffer_bytes = 1};
    enum ek_status st = EK_OK;

    if (n > 0) /* a stage of a borrowed head alone has none */
        qsort(loads, n, sizeof(*loads), file_order);
    for (size_t i = 0; i < n && st == EK_OK; i++)
        st = cut(&o, &loads[i]);
    for (size_t i = 0; i < o.n; i++)
        if (piece_bytes(&o.pieces[i]) > o.buffer_bytes)
            o.buffer_bytes = piece_bytes(&o.pieces[i]);
    o.buffer_bytes = ek_round_up(o.buffer_bytes, BUFFER_ALIGN);
    o.in_place = dev->ops->host && what == (LOAD_READ | LOAD_SEND);
    pthread_mutex_init(&o.issue, NULL);
    if (st == EK_OK && o.n > 0)
        st = with_readers(&o);
    pthread_mutex_destroy(&o.issue);
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

/* Of one thing alone: without buffers. Of loading: with everything that it takes. */
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
