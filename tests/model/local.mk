# SPDX-License-Identifier: Apache-2.0
noinst_PROGRAMS += tests/model/tokenize
tests_model_tokenize_SOURCES = tests/model/tokenize.c
tests_model_tokenize_LDADD = libmodel.a libbase.a $(JANSSON_LIBS) $(MODEL_LIBS)

check_PROGRAMS += tests/model/check_tokenizer
TESTS += tests/model/check_tokenizer
tests_model_check_tokenizer_SOURCES = tests/model/check_tokenizer.c
tests_model_check_tokenizer_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_tokenizer_LDADD = libmodel.a libbase.a $(JANSSON_LIBS) $(MODEL_LIBS) $(TEST_LIBS)
check_PROGRAMS += tests/model/check_tokenizer_files
TESTS += tests/model/check_tokenizer_files
tests_model_check_tokenizer_files_SOURCES = tests/model/check_tokenizer_files.c
tests_model_check_tokenizer_files_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_tokenizer_files_LDADD = libmodel.a libbase.a $(JANSSON_LIBS) $(MODEL_LIBS) \
	$(TEST_LIBS)
EXTRA_DIST += tests/fixtures/tokenizers tests/reference/make_tokenizers.py \
	tests/reference/compare_tokenizers.py
EXTRA_DIST += tests/fixtures/configs
MODEL_TEST_LIBS = libmodel.a libbase.a $(JANSSON_LIBS) $(MODEL_LIBS) $(TEST_LIBS)
check_PROGRAMS += tests/model/check_files
TESTS += tests/model/check_files
tests_model_check_files_SOURCES = tests/model/check_files.c tests/model/files.c tests/model/files.h
tests_model_check_files_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_files_LDADD = $(MODEL_TEST_LIBS)
check_PROGRAMS += tests/model/check_config
TESTS += tests/model/check_config
tests_model_check_config_SOURCES = tests/model/check_config.c tests/model/files.c \
	tests/model/files.h
tests_model_check_config_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_config_LDADD = $(MODEL_TEST_LIBS)
check_PROGRAMS += tests/model/check_model
TESTS += tests/model/check_model
tests_model_check_model_SOURCES = tests/model/check_model.c tests/model/files.c tests/model/files.h
tests_model_check_model_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_model_LDADD = $(MODEL_TEST_LIBS)
check_PROGRAMS += tests/model/check_weights
TESTS += tests/model/check_weights
tests_model_check_weights_SOURCES = tests/model/check_weights.c tests/model/files.c \
	tests/model/files.h
tests_model_check_weights_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_weights_LDADD = libmodel.a libkernels.a $(MODEL_TEST_LIBS)
check_PROGRAMS += tests/model/check_gguf_deepseek
TESTS += tests/model/check_gguf_deepseek
tests_model_check_gguf_deepseek_SOURCES = tests/model/check_gguf_deepseek.c tests/model/files.c \
	tests/model/files.h
tests_model_check_gguf_deepseek_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_gguf_deepseek_LDADD = libmodel.a $(MODEL_TEST_LIBS)
noinst_PROGRAMS += tests/model/tensors
tests_model_tensors_SOURCES = tests/model/tensors.c
tests_model_tensors_LDADD = libmodel.a libkernels.a libbase.a $(JANSSON_LIBS) $(MODEL_LIBS)
EXTRA_DIST += tests/reference/compare_models.py tests/reference/compare_quant.py \
	tests/reference/compare_gguf.py tests/reference/make_quantised.py
PICTURE_TEST_FILES = tests/model/pictures.c tests/model/pictures.h tests/model/files.c \
	tests/model/files.h
check_PROGRAMS += tests/model/check_image
TESTS += tests/model/check_image
tests_model_check_image_SOURCES = tests/model/check_image.c $(PICTURE_TEST_FILES)
tests_model_check_image_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_image_LDADD = $(MODEL_TEST_LIBS)
check_PROGRAMS += tests/model/check_visual
TESTS += tests/model/check_visual
tests_model_check_visual_SOURCES = tests/model/check_visual.c $(PICTURE_TEST_FILES)
tests_model_check_visual_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_visual_LDADD = $(MODEL_TEST_LIBS)
check_PROGRAMS += tests/model/check_prompt
TESTS += tests/model/check_prompt
tests_model_check_prompt_SOURCES = tests/model/check_prompt.c $(PICTURE_TEST_FILES)
tests_model_check_prompt_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_prompt_LDADD = $(MODEL_TEST_LIBS)
noinst_PROGRAMS += tests/model/pixels
tests_model_pixels_SOURCES = tests/model/pixels.c
tests_model_pixels_LDADD = libmodel.a libbase.a $(JANSSON_LIBS) $(MODEL_LIBS)
EXTRA_DIST += tests/reference/compare_images.py
