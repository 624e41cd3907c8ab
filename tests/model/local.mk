noinst_PROGRAMS += tests/model/tokenize
tests_model_tokenize_SOURCES = tests/model/tokenize.c
tests_model_tokenize_LDADD = libmodel.a libbase.a $(JANSSON_LIBS) $(ONIG_LIBS) $(UTF8PROC_LIBS)
