# SPDX-License-Identifier: Apache-2.0
noinst_LIBRARIES += libmodel.a
# what programs that link libmodel.a need beside libbase.a
MODEL_LIBS = $(ONIG_LIBS) $(UTF8PROC_LIBS) $(JPEG_LIBS) $(PNG_LIBS)
libmodel_a_SOURCES = \
	model/model.h \
	model/tokenizer.h \
	model/image.h \
	model/gguf.h \
	model/datafile.h \
	model/datafile.c \
	model/gguf.c \
	model/gguf_heads.c \
	model/internal.h \
	model/arena.c \
	model/bind.c \
	model/checkpoint.c \
	model/config.c \
	model/config_check.c \
	model/config_gguf.c \
	model/config_quant.c \
	model/costs.c \
	model/families.c \
	model/identity.c \
	model/index.c \
	model/model_json.c \
	model/modules.c \
	model/quant.c \
	model/quant_read.c \
	model/rope.c \
	model/safetensors.c model/write.c \
	model/synthetic.c \
	model/tower.c \
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
	model/vocab.c \
	model/image_decode.c \
	model/image_exif.c \
	model/image_geometry.c \
	model/image_grounding.c \
	model/image_internal.h \
	model/image_jpeg.c \
	model/image_layout.c \
	model/image_measure.c \
	model/image_png.c \
	model/image_prepare.c \
	model/image_resize.c \
	model/image_rules.c
EXTRA_DIST += docs/models.md
