/* SPDX-License-Identifier: Apache-2.0
 *
 * base: what every part uses. Status and messages, checked sizes, units, data types, files, JSON,
 * tables, progress, time, hashes. Depends on libc, jansson and xxhash alone.
 */
#ifndef EK_BASE_H
#define EK_BASE_H

#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ---- Status ---------------------------------------------------------------------------------
 * A function that can fail returns a status. The first to notice writes the one-line message
 * (ek_error); everyone else propagates the status untouched. Out-parameters are set on success
 * only.
 */
enum ek_status {
    EK_OK = 0,
    EK_NO,           /* done, and the answer is no: infeasible, logits differ         (exit 1) */
    EK_EUSAGE,       /* a bad argument                                               (exit 2) */
    EK_EENV,         /* the environment: no such device, disk full, database locked  (exit 3) */
    EK_ENOMEM,       /* host or device memory exhausted                              (exit 3) */
    EK_EFORMAT,      /* a file handed in is malformed                                (exit 4) */
    EK_EUNSUPPORTED, /* a file handed in is well-formed but not supported            (exit 4) */
    EK_EUNPROVEN,    /* stopped before the proof; the best so far is marked          (exit 5) */
    EK_EDEVICE,      /* a device failed while running                                (exit 6) */
    EK_EINTR,        /* interrupted                                                (exit 130) */
};

/* Records one line (thread-local, at most 1023 bytes) and returns st: "return ek_error(...)". */
enum ek_status ek_error(enum ek_status st, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* The calling thread's last message, "" when there was none. Valid until its next ek_error. */
const char *ek_last_error(void);
/* The process exit code of a status (table above). */
int ek_exit_code(enum ek_status st);
/* Replaces what could steer a terminal (C0 and C1 controls, DEL) and what is not UTF-8 by '?', in
 * place: text from files and names of files are shown only after this. */
void ek_plain_text(char *s);
/* First call of a main: descriptors 0, 1 and 2 that the caller closed are taken, so that no file
 * of ours becomes one of them; writing to them fails. SIGPIPE is ignored: writes fail instead. */
void ek_stdio_init(void);
/* Last call of a main: EK_EENV when some of stdout was not written (closed, disk full). */
enum ek_status ek_stdio_flush(void);
/* A message to stderr, "evenkeel: ..." plus newline, unless quiet. Never used for errors. */
void ek_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void ek_set_quiet(bool quiet);

/* Runs expr; on failure returns its status from the enclosing function. */
#define EK_TRY(expr)                                                                               \
    do {                                                                                           \
        enum ek_status ek_try_st_ = (expr);                                                        \
        if (ek_try_st_ != EK_OK)                                                                   \
            return ek_try_st_;                                                                     \
    } while (0)
/* Runs expr; on failure stores its status in st and jumps to label (one exit path per function). */
#define EK_GOTO(expr, st, label)                                                                   \
    do {                                                                                           \
        (st) = (expr);                                                                             \
        if ((st) != EK_OK)                                                                         \
            goto label;                                                                            \
    } while (0)

/* ---- Checked sizes and allocation ------------------------------------------------------------ */
/* *out = a op b; false (and *out untouched) on overflow. */
bool ek_mul_size(size_t a, size_t b, size_t *out);
bool ek_add_size(size_t a, size_t b, size_t *out);
/* a rounded up to a multiple of b (b > 0); the caller guarantees that it does not overflow. */
size_t ek_round_up(size_t a, size_t b);
/* Zeroed array of n items of size bytes; NULL (with a message recorded) on overflow or no memory.
 * Freed with free(). EK_FAIL_ALLOC=N in the environment makes the N-th call fail (fault tests). */
void *ek_calloc(size_t n, size_t size);
/* Grows *array (of *cap items of size bytes) so that it holds at least need, at most max items. */
enum ek_status ek_grow(void **array, size_t *cap, size_t need, size_t size, size_t max);
char *ek_strdup(const char *s);
/* printf into fresh memory; NULL (message recorded) when there is none. Freed with free(). */
char *ek_asprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define EK_KIB          ((uint64_t)1 << 10)
#define EK_MIB          ((uint64_t)1 << 20)
#define EK_GIB          ((uint64_t)1 << 30)
#define EK_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* ---- Units ------------------------------------------------------------------------------------
 * GB = 10^9, GiB = 2^30. */
/* A size such as "15GB", "15 GiB", "512MiB", "0.9" or "90%" (a fraction of total, 0 < f <= 1)
 * or "1e9".
 * total = 0: fractions are refused. Refused with the position of the first bad character. */
enum ek_status ek_parse_size(const char *text, uint64_t total, uint64_t *out);
/* A list "15GB 15GB", "15GiB,15GiB", "cuda:0=20GiB cpu=0.5" split into items (name may be ""). */
struct ek_size_item {
    char name[64];   /* "" when the item has no NAME= */
    uint64_t bytes;  /* 0 when fraction > 0 */
    double fraction; /* 0 when bytes were given */
};
/* *out: malloc'd array of *n items, freed with free(). At most 1024 items. */
enum ek_status ek_parse_size_list(const char *text, struct ek_size_item **out, size_t *n);
/* A whole decimal number within [min, max]; what names it in the message. */
enum ek_status ek_parse_u64(const char *text, const char *what, uint64_t min, uint64_t max,
                            uint64_t *out);
/* A finite number within [min, max]. */
enum ek_status ek_parse_double(const char *text, const char *what, double min, double max,
                               double *out);
#define EK_UNIT_LEN 32
/* "1.25 GiB" / "12.3 GB/s" / "1.23 ms", written into buf and returned. */
const char *ek_format_bytes(char buf[EK_UNIT_LEN], uint64_t bytes);
const char *ek_format_rate(char buf[EK_UNIT_LEN], double bytes_per_s);
const char *ek_format_seconds(char buf[EK_UNIT_LEN], double s);

/* ---- Data types -------------------------------------------------------------------------------
 * Element and block types of tensors. Numbers are internal; files use the names. */
enum ek_dtype {
    EK_F32,
    EK_F16,
    EK_BF16,
    EK_F64,
    EK_F8_E4M3,
    EK_F8_E5M2,
    EK_I64,
    EK_I32,
    EK_I16,
    EK_I8,
    EK_U8,
    EK_BOOL,
    EK_Q4_0, /* from here: ggml block types, blocks along the row */
    EK_Q4_1,
    EK_Q5_0,
    EK_Q5_1,
    EK_Q8_0,
    EK_Q4_K,
    EK_Q5_K,
    EK_Q6_K,
    /* GPTQ, AWQ, FP8 and weights quantised at load: groups along the row, made by model/quant.c
     * (docs/models.md). G4, G8: u16 scale, u8 zero, u8 (1: the scale is BF16, else F16), nibbles
     * (low first) or bytes. B8: f32 scale, then E4M3 bytes. */
    EK_G4_32,
    EK_G4_64,
    EK_G4_128,
    EK_G8_32,
    EK_G8_64,
    EK_G8_128,
    EK_B8_32,
    EK_B8_64,
    EK_B8_128,
    EK_N_DTYPES
};
const char *ek_dtype_name(enum ek_dtype t); /* "F32", "BF16", "Q4_1", ... (safetensors, ggml) */
bool ek_dtype_from_name(const char *name, enum ek_dtype *out); /* also "float32", "bfloat16", ... */
bool ek_dtype_is_act(enum ek_dtype t);                         /* of activations: F32, F16, BF16 */
bool ek_dtype_is_cache(enum ek_dtype t);                       /* of the cache: these and F8_E4M3 */
size_t ek_dtype_block(enum ek_dtype t);                        /* elements a block: 1, 32 .. 256 */
size_t ek_dtype_block_bytes(enum ek_dtype t);                  /* bytes a block */
/* Bytes of n contiguous elements; EK_EFORMAT when n is no multiple of the block or it overflows. */
enum ek_status ek_dtype_bytes(enum ek_dtype t, size_t n, size_t *out);
float ek_e4m3_to_f32(uint8_t x); /* E4M3FN: bias 7, no infinity, NaN is 0x7f and 0xff */
uint8_t ek_f32_to_e4m3(float x); /* round to nearest even, beyond 448 to 448, NaN kept */
float ek_bf16_to_f32(uint16_t x);
float ek_f16_to_f32(uint16_t x);
uint16_t ek_f32_to_bf16(float x); /* round to nearest even, NaN kept */
uint16_t ek_f32_to_f16(float x);  /* round to nearest even, overflow to infinity */
/* Dequantises n elements (a multiple of the block) of any weight dtype to F32: the plain C
 * reference that every backend is tested against. */
enum ek_status ek_dequantize(enum ek_dtype dtype, const void *src, float *dst, size_t n);

/* ---- Files ----------------------------------------------------------------------------------- */
/* Opens a regular file for reading; nothing else (a pipe could keep us waiting). */
enum ek_status ek_file_open(const char *path, int *fd, uint64_t *size);
/* Whole file into fresh memory with a NUL behind it (not counted); refuses files over max bytes. */
enum ek_status ek_file_read(const char *path, size_t max, char **out, size_t *n);
/* A file that is written piece by piece: a temp file beside path, and by ek_file_end, where st is
 * EK_OK, synced and put in its place, else removed; path is whole or untouched. Existing files are
 * replaced only with force. ek_file_end gives st back, or why it could not. */
struct ek_new_file {
    char *path, *temp;
    FILE *stream; /* to write to; what fails there is seen by ek_file_end too */
};
enum ek_status ek_file_begin(const char *path, bool force, struct ek_new_file *out);
enum ek_status ek_file_end(struct ek_new_file *f, enum ek_status st);
/* All at once. path "-" writes to stdout. */
enum ek_status ek_file_write(const char *path, const void *data, size_t n, bool force);
/* Whether ek_file_write could begin: asked before the work whose result is written. EK_EUSAGE when
 * path is there and force is not given, EK_EENV when its folder cannot be written to. */
enum ek_status ek_file_may_write(const char *path, bool force);
bool ek_file_exists(const char *path);
/* dir + "/" + name in fresh memory, freed with free(). */
char *ek_path_join(const char *dir, const char *name);

/* ---- JSON (jansson), typed reads that name file and field ------------------------------------ */
/* Parses a file of at most max bytes: UTF-8 checked, duplicate keys refused, depth limited. The
 * caller owns *out (json_decref). */
enum ek_status ek_json_read(const char *path, size_t max, json_t **out);
enum ek_status ek_json_parse(const char *text, size_t n, const char *where, json_t **out);
/* Where a value came from, for messages: "FILE: FIELD must be ..., got ...". */
struct ek_json_at {
    const char *file;
    const char *prefix; /* "" or e.g. "language_config." */
};
/* Required values. Range-checked, finite. */
enum ek_status ek_json_u64(const json_t *obj, struct ek_json_at at, const char *key, uint64_t min,
                           uint64_t max, uint64_t *out);
enum ek_status ek_json_real(const json_t *obj, struct ek_json_at at, const char *key, double min,
                            double max, double *out);
/* *out is borrowed from obj. */
enum ek_status ek_json_string(const json_t *obj, struct ek_json_at at, const char *key,
                              const char **out);
enum ek_status ek_json_array(const json_t *obj, struct ek_json_at at, const char *key,
                             const json_t **out);
enum ek_status ek_json_object(const json_t *obj, struct ek_json_at at, const char *key,
                              const json_t **out);
/* Optional: absent or null leaves *out as it is; a wrong type or range is refused. */
enum ek_status ek_json_opt_u64(const json_t *obj, struct ek_json_at at, const char *key,
                               uint64_t min, uint64_t max, uint64_t *out);
enum ek_status ek_json_opt_real(const json_t *obj, struct ek_json_at at, const char *key,
                                double min, double max, double *out);
enum ek_status ek_json_opt_bool(const json_t *obj, struct ek_json_at at, const char *key,
                                bool *out);
enum ek_status ek_json_opt_string(const json_t *obj, struct ek_json_at at, const char *key,
                                  const char **out);
/* Canonical text (keys in insertion order, 2-space indent, newline at the end, reals with 9
 * significant digits): the same value gives the same bytes. Freed with free(). */
char *ek_json_text(const json_t *value);
enum ek_status ek_json_write(const char *path, const json_t *value, bool force);
/* To stdout, and drops the reference. EK_ENOMEM for NULL, EK_EENV when stdout fails. */
enum ek_status ek_json_print(json_t *value);

/* ---- Tables for people ----------------------------------------------------------------------- */
struct ek_table; /* rows of text cells, printed with aligned columns */
/* headers: "name|>bytes|>ms" ('>' right-aligns). NULL when there is no memory. */
struct ek_table *ek_table_new(const char *headers);
/* One row, cells separated by '|' after formatting. */
void ek_table_row(struct ek_table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ek_table_print(const struct ek_table *t, FILE *out);
void ek_table_free(struct ek_table *t); /* NULL is fine */

/* ---- Progress: a bar on a terminal, else a line every 10 s; to stderr ------------------------ */
struct ek_progress;
struct ek_progress *ek_progress_new(const char *what, uint64_t total); /* NULL when quiet */
void ek_progress_set(struct ek_progress *p, uint64_t done, const char *detail); /* NULL is fine */
void ek_progress_free(struct ek_progress *p);

/* ---- Time, randomness, hashes ---------------------------------------------------------------- */
uint64_t ek_now_ns(void); /* monotonic */
/* SplitMix64: a stream of 64-bit numbers from a seed; the same everywhere. */
uint64_t ek_random_u64(uint64_t *state);
float ek_random_normal(uint64_t *state);
double ek_random_unit(uint64_t *state); /* [0, 1) */
/* 128-bit XXH3 of data, as 32 hex digits plus NUL. Identity, not security. */
void ek_hash_hex(const void *data, size_t n, char out[33]);
uint64_t ek_hash_u64(const void *data, size_t n); /* of memory; not for files */
struct ek_hash;                                   /* streaming form */
struct ek_hash *ek_hash_new(void);
void ek_hash_add(struct ek_hash *h, const void *data, size_t n);
void ek_hash_end(struct ek_hash *h, char out[33]); /* frees h */

#endif
