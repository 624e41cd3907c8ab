/* SPDX-License-Identifier: Apache-2.0
 *
 * Internal to model/: the pieces of a byte-level BPE tokenizer. utf8.c, vocab.c, added.c,
 * normalize.c, pretokenize.c, bpe.c, decode.c, chat.c; read by tokenizer_json.c and
 * tokenizer_gguf.c; put together by tokenizer.c.
 */
#ifndef EK_MODEL_TOKENIZER_INTERNAL_H
#define EK_MODEL_TOKENIZER_INTERNAL_H

#include "model/tokenizer.h"

/* Maxima, far above every known vocabulary (the largest: 262 k tokens, 514 k merges). */
#define EK_TOKENS_MAX         ((size_t)1 << 20)
#define EK_MERGES_MAX         ((size_t)1 << 22)
#define EK_ADDED_MAX          ((size_t)1 << 14)
#define EK_TOKEN_BYTES_MAX    ((size_t)4096)
#define EK_PATTERN_BYTES_MAX  ((size_t)16 << 10)
#define EK_SPLITS_MAX         16
#define EK_NORMALIZERS_MAX    8
#define EK_TEXT_BYTES_MAX     ((size_t)16 << 20) /* one encode call */
#define EK_TOKENIZER_FILE_MAX ((size_t)64 << 20)

/* ---- UTF-8 and byte-level characters (utf8.c) ------------------------------------------------ */
struct ek_buffer {
    char *data; /* NUL-terminated once something was added */
    size_t n, cap;
};
enum ek_status ek_buffer_add(struct ek_buffer *b, const char *s, size_t n);
void ek_buffer_free(struct ek_buffer *b);

/* Length of the character at s (n > 0 bytes left) and its code point; 0: the n bytes are a valid
 * beginning of one; negative: minus the length of the maximal ill-formed subpart. */
int ek_utf8_next(const char *s, size_t n, uint32_t *code);
/* Appends s with every ill-formed subpart replaced by U+FFFD. With final unset, an incomplete
 * character at the end is left out; *taken is what was consumed. */
enum ek_status ek_utf8_repair(struct ek_buffer *out, const char *s, size_t n, bool final,
                              size_t *taken);
bool ek_utf8_valid(const char *s, size_t n);
bool ek_is_white_space(uint32_t code); /* the Unicode property */
bool ek_is_word(uint32_t code);        /* \w: alphabetic, marks, decimal digits, connectors */
/* Bytes that start from both ends of s and are white space. */
size_t ek_leading_space(const char *s, size_t n);
size_t ek_trailing_space(const char *s, size_t n);
/* Byte-level form ("Ġthe") to bytes (" the"); out holds n bytes. False when s has another
 * character than the 256 of the map. */
bool ek_byte_level_bytes(const char *s, size_t n, char *out, size_t *n_out);
#define EK_QUOTE_LEN 80
/* A token's text for a one-line message: printable, shortened. Returns buf. */
const char *ek_quote(char buf[EK_QUOTE_LEN], const char *s, size_t n);

/* ---- Vocabulary and merges (vocab.c) --------------------------------------------------------- */
struct ek_vocab_token {
    uint32_t offset, n; /* in text */
    int32_t added;      /* index in added.tokens, or -1 */
    bool present;       /* the id is in the model's vocabulary */
    bool mapped;        /* bytes; else verbatim text that byte-level BPE never produces */
};
struct ek_vocab {
    struct ek_vocab_token *tokens; /* by id */
    uint32_t n;
    char *text;
    size_t text_n, text_cap;
    uint32_t *slots; /* id + 1, open addressing; 0: free */
    uint32_t mask;
};
enum ek_status ek_vocab_init(struct ek_vocab *v, size_t n);
void ek_vocab_free(struct ek_vocab *v);
/* A token in byte-level form; refused (where names the file) when id or text came before. */
enum ek_status ek_vocab_set(struct ek_vocab *v, uint32_t id, const char *s, size_t n,
                            const char *where);
int32_t ek_vocab_find(const struct ek_vocab *v, const char *bytes, size_t n, bool mapped);
/* By the text as vocabularies write it ("Ġthe"). */
int32_t ek_vocab_find_written(const struct ek_vocab *v, const char *s, size_t n);

struct ek_merge {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank; /* UINT32_MAX: free slot */
    int32_t id;
};
struct ek_merges {
    struct ek_merge *slots;
    size_t mask;
};
enum ek_status ek_merges_init(struct ek_merges *m, size_t n);
void ek_merges_free(struct ek_merges *m);
const struct ek_merge *ek_merges_find(const struct ek_merges *m, int32_t left, int32_t right);
/* A merge of two tokens in byte-level form; refused when either or their union is no token. */
enum ek_status ek_merges_add(struct ek_merges *m, const struct ek_vocab *v, uint32_t rank,
                             const char *left, size_t n_left, const char *right, size_t n_right,
                             const char *where);

/* ---- Added tokens (added.c) ------------------------------------------------------------------ */
struct ek_added_token {
    char *text; /* as decoded */
    uint32_t n;
    int32_t id;
    bool special, normalized, lstrip, rstrip, single_word;
    bool marker; /* parsed only with EK_ENCODE_SPECIAL: special, or of the form <...> */
};
struct ek_trie_node {
    int32_t child, sibling; /* indices, -1: none */
    int32_t added;          /* token that ends here, or -1 */
    uint8_t byte;
};
struct ek_trie {
    struct ek_trie_node *nodes;
    size_t n, cap;
    int32_t first[256]; /* nodes of first bytes, -1: none */
};
struct ek_added {
    struct ek_added_token *tokens;
    size_t n, cap;
    struct ek_trie raw, normalized; /* matched on the raw text, on the normalised text */
};
struct ek_normalizer;
void ek_added_init(struct ek_added *a);
void ek_added_free(struct ek_added *a);
/* Copies token (its text too) and enters it into its trie, normalised first where it asks. */
enum ek_status ek_added_put(struct ek_added *a, const struct ek_normalizer *nz,
                            const struct ek_added_token *token);
const struct ek_added_token *ek_added_find(const struct ek_added *a, const char *text, size_t n);

/* Cuts text at added tokens: leftmost, then longest. */
struct ek_cut {
    const char *s;
    size_t n;
    int32_t id; /* -1: text between tokens */
};
struct ek_cutter {
    const struct ek_added *added;
    const struct ek_trie *trie;
    bool markers;
    const char *text;
    size_t n, at;
    struct ek_cut pending; /* a token found behind a run of text */
    bool has_pending;
};
bool ek_cutter_next(struct ek_cutter *c, struct ek_cut *out);

/* ---- Normaliser (normalize.c) ---------------------------------------------------------------- */
enum ek_normal_form { EK_NFC, EK_NFD, EK_NFKC, EK_NFKD };
struct ek_normalizer {
    enum ek_normal_form forms[EK_NORMALIZERS_MAX];
    size_t n;
};
/* *out = s itself, or fresh memory that *owned also points to (else *owned is NULL). */
enum ek_status ek_normalize(const struct ek_normalizer *nz, const char *s, size_t n,
                            const char **out, size_t *n_out, char **owned);

/* ---- Pre-tokenizer (pretokenize.c) ----------------------------------------------------------- */
struct re_pattern_buffer;
struct ek_split {
    struct re_pattern_buffer *regex; /* NULL: literal */
    char *literal;
    size_t n_literal;
    bool removed; /* matches are dropped; else each match and each gap is a piece */
    bool invert;  /* matches and gaps change roles (with removed only) */
};
struct ek_pretokenizer {
    struct ek_split splits[EK_SPLITS_MAX];
    size_t n;
    size_t prefix_at; /* a space is put before pieces that enter this split; SIZE_MAX: never */
};
void ek_pretokenizer_init(struct ek_pretokenizer *p);
void ek_pretokenizer_free(struct ek_pretokenizer *p);
extern const char ek_gpt2_pattern[];
enum ek_status ek_pretokenizer_regex(struct ek_pretokenizer *p, const char *pattern, size_t n,
                                     bool removed, bool invert, const char *where);
enum ek_status ek_pretokenizer_literal(struct ek_pretokenizer *p, const char *text, size_t n,
                                       bool removed, bool invert, const char *where);
/* The rows of tokenizer.ggml.pre: what a GGUF leaves out. */
struct ek_pre_family {
    const char *name;
    const char *patterns[6]; /* up to the first NULL, each Isolated */
    bool nfc, ignore_merges, adds_bos;
};
const struct ek_pre_family *ek_pre_family_find(const char *name);

typedef enum ek_status ek_piece_fn(void *arg, const char *s, size_t n);
/* One text run's pieces in order. May be called from several threads. */
enum ek_status ek_pretokenize(const struct ek_pretokenizer *p, const char *s, size_t n,
                              ek_piece_fn *emit, void *arg);

/* ---- BPE (bpe.c) ----------------------------------------------------------------------------- */
struct ek_ids {
    int32_t *ids;
    size_t n, cap;
};
enum ek_status ek_ids_add(struct ek_ids *v, int32_t id);

struct ek_bpe {
    struct ek_vocab vocab;
    struct ek_merges merges;
    int32_t byte_id[256]; /* -1: the byte has no token */
    int32_t unk;          /* for bytes without a token; -1: they are dropped */
    bool fuse_unk;        /* a run of them is one unk */
    bool ignore_merges;   /* a piece that is a token is that token */
};
struct ek_bpe_work; /* scratch memory of one encoding */
struct ek_bpe_work *ek_bpe_work_new(void);
void ek_bpe_work_free(struct ek_bpe_work *w);
enum ek_status ek_bpe_encode(const struct ek_bpe *b, struct ek_bpe_work *w, const char *s, size_t n,
                             struct ek_ids *out);
/* Fills byte_id; refused when a printable ASCII character has no token. */
enum ek_status ek_bpe_index_bytes(struct ek_bpe *b, const char *where);

/* ---- The tokenizer --------------------------------------------------------------------------- */
struct ek_chat_family;
struct ek_tokenizer {
    struct ek_bpe bpe;
    struct ek_added added;
    struct ek_normalizer normalizer;
    struct ek_pretokenizer pre;
    int32_t bos, eos;
    bool adds_bos;
    char *chat_template; /* Jinja source, or NULL */
    const struct ek_chat_family *chat;
    char *chat_system; /* the template's default system message, or NULL */
};
/* Readers. *out is whole and checked; chat is recognised by the caller's ek_chat_recognise. */
enum ek_status ek_tokenizer_from_json(const char *text, size_t n, const char *where,
                                      struct ek_tokenizer **out);
enum ek_status ek_tokenizer_from_gguf(const char *path, struct ek_tokenizer **out);
/* tokenizer_config.json and its like beside a tokenizer.json, each optional. */
enum ek_status ek_tokenizer_read_config(struct ek_tokenizer *t, const char *dir);
enum ek_status ek_tokenizer_apply_config(struct ek_tokenizer *t, const json_t *config,
                                         const char *where);
struct ek_tokenizer *ek_tokenizer_new(void);
/* Enters an added token and marks its id in the vocabulary. */
enum ek_status ek_tokenizer_add(struct ek_tokenizer *t, const struct ek_added_token *token,
                                const char *where);
/* Refuses holes in the ids; called when vocabulary and added tokens are in. */
enum ek_status ek_tokenizer_check_ids(const struct ek_tokenizer *t, const char *where);
enum ek_status ek_chat_recognise(struct ek_tokenizer *t);

#endif
