/* SPDX-License-Identifier: Apache-2.0
 *
 * Text to token ids and back: byte-level BPE from tokenizer.json or a GGUF's metadata, chat
 * templates. Part of model/; include model/model.h from outside.
 */
#ifndef EK_MODEL_TOKENIZER_H
#define EK_MODEL_TOKENIZER_H

#include "base/base.h"

struct ek_tokenizer;

/* path: whatever ek_model_open takes (a directory with tokenizer.json or one .gguf, a .gguf, the
 * config.json of a directory), or a tokenizer.json.
 * Freed with ek_tokenizer_free (NULL is fine). */
enum ek_status ek_tokenizer_open(const char *path, struct ek_tokenizer **out);
void ek_tokenizer_free(struct ek_tokenizer *t);

uint32_t ek_tokenizer_size(const struct ek_tokenizer *t); /* highest id + 1 */
/* EK_EFORMAT when the tokenizer has more ids than an embedding matrix has rows (padded rows are
 * fine: fewer ids than rows). */
enum ek_status ek_tokenizer_fits(const struct ek_tokenizer *t, uint64_t rows);
/* Id of a token by its text (added tokens first), or -1. */
int32_t ek_tokenizer_id(const struct ek_tokenizer *t, const char *text);
int32_t ek_tokenizer_bos(const struct ek_tokenizer *t); /* -1: none */
int32_t ek_tokenizer_eos(const struct ek_tokenizer *t); /* -1: none */
bool ek_tokenizer_adds_bos(const struct ek_tokenizer *t);

enum {
    /* Special tokens, and added tokens of the form <...>, in the text become their ids; else they
     * are plain text. Added tokens that are words or characters always count. */
    EK_ENCODE_SPECIAL = 1,
    EK_ENCODE_BOS = 2, /* put bos first where the checkpoint says so */
};
/* n bytes of UTF-8, at most 16 MiB (ill-formed bytes are replaced by U+FFFD as Hugging Face does).
 * *ids: malloc'd. May be called from several threads. */
enum ek_status ek_tokenizer_encode(const struct ek_tokenizer *t, const char *text, size_t n,
                                   int flags, int32_t **ids, size_t *n_ids);
/* Whole text of ids, malloc'd and NUL-terminated; ill-formed UTF-8 and NUL become U+FFFD. Ids that
 * have no token (padded rows of an embedding) are no text. */
enum ek_status ek_tokenizer_decode(const struct ek_tokenizer *t, const int32_t *ids, size_t n,
                                   bool skip_special, char **text);

/* What a token stands for, borrowed, not NUL-terminated: maybe a part of a character only; nothing
 * for ids that have no token. */
void ek_tokenizer_bytes(const struct ek_tokenizer *t, int32_t id, const char **bytes, size_t *n);

/* Streaming: bytes of an incomplete UTF-8 character are held back until it is complete. */
struct ek_decoder;
struct ek_decoder *ek_decoder_new(const struct ek_tokenizer *t, bool skip_special); /* borrows t */
/* *text (borrowed until the next call, NUL-terminated) is what became complete, maybe "". */
enum ek_status ek_decoder_push(struct ek_decoder *d, int32_t id, const char **text);
const char *ek_decoder_flush(struct ek_decoder *d); /* the rest; incomplete bytes as U+FFFD */
void ek_decoder_free(struct ek_decoder *d);

/* ---- Chat ---------------------------------------------------------------------------------------
 * Templates are a table of known families (ChatML as SmolLM2 and Qwen use it, Llama 3, DeepSeek
 * LLM/V2, DeepSeek-VL2), recognised from the checkpoint's template text or its special tokens. */
struct ek_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
};
/* Token ids of the conversation, ready for the assistant's next turn. EK_EUNSUPPORTED when the
 * checkpoint has no known template. Special tokens in contents are not parsed. */
enum ek_status ek_chat_encode(const struct ek_tokenizer *t, const struct ek_message *messages,
                              size_t n, int32_t **ids, size_t *n_ids);
/* Name of the recognised template ("chatml", ...), or NULL. */
const char *ek_chat_template(const struct ek_tokenizer *t);
/* Ids that end an assistant's turn (eos and the template's own); returns how many (at most cap). */
size_t ek_chat_stops(const struct ek_tokenizer *t, int32_t *ids, size_t cap);

#endif
