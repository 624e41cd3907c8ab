noinst_PROGRAMS += tests/model/tokenize
tests_model_tokenize_SOURCES = tests/model/tokenize.c
tests_model_tokenize_LDADD = libmodel.a libbase.a $(JANSSON_LIBS) $(ONIG_LIBS) $(UTF8PROC_LIBS)

check_PROGRAMS += tests/model/check_tokenizer
TESTS += tests/model/check_tokenizer
tests_model_check_tokenizer_SOURCES = tests/model/check_tokenizer.c
tests_model_check_tokenizer_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_tokenizer_LDADD = libmodel.a libbase.a $(JANSSON_LIBS) $(ONIG_LIBS) \
	$(UTF8PROC_LIBS) $(TEST_LIBS)
check_PROGRAMS += tests/model/check_tokenizer_files
TESTS += tests/model/check_tokenizer_files
tests_model_check_tokenizer_files_SOURCES = tests/model/check_tokenizer_files.c
tests_model_check_tokenizer_files_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_tokenizer_files_LDADD = libmodel.a libbase.a $(JANSSON_LIBS) $(ONIG_LIBS) \
	$(UTF8PROC_LIBS) $(TEST_LIBS)
EXTRA_DIST += tests/fixtures/tokenizers tests/reference/make_tokenizers.py \
	tests/reference/compare_tokenizers.py
EXTRA_DIST += tests/fixtures/configs
MODEL_TEST_LIBS = libmodel.a libbase.a $(JANSSON_LIBS) $(ONIG_LIBS) $(UTF8PROC_LIBS) $(TEST_LIBS)
check_PROGRAMS += tests/model/check_files
TESTS += tests/model/check_files
tests_model_check_files_SOURCES = tests/model/check_files.c tests/model/files.c tests/model/files.h
tests_model_check_files_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_model_check_files_LDADD = $(MODEL_TEST_LIBS)
check_PROGRAMS += tests/model/check_config
TESTS += tests/model/check_config
tests_model_check_config_SOURCES = tests/model/check_config.c tests/model/files.c tests/model/files.h
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
noinst_PROGRAMS += tests/model/tensors
tests_model_tensors_SOURCES = tests/model/tensors.c
tests_model_tensors_LDADD = libmodel.a libbase.a $(JANSSON_LIBS) $(ONIG_LIBS) $(UTF8PROC_LIBS)
EXTRA_DIST += tests/reference/compare_models.py
