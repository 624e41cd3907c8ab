noinst_LIBRARIES += libmodel.a
libmodel_a_SOURCES = \
	model/model.h \
	model/tokenizer.h \
	model/gguf.h \
	model/datafile.h \
	model/datafile.c \
	model/gguf.c \
	model/safetensors.c \
	model/added.c \
	model/bpe.c \
	model/chat.c \
	model/decode.c \
	model/normalize.c \
	model/pretokenize.c \
	model/tokenizer.c \
	model/tokenizer_config.c \
	model/tokenizer_gguf.c \
	model/tokenizer_internal.h \
	model/tokenizer_json.c \
	model/utf8.c \
	model/vocab.c
