# SPDX-License-Identifier: Apache-2.0
check_PROGRAMS += tests/profiler/check_store
TESTS += tests/profiler/check_store
STORE_TEST_SUPPORT = tests/profiler/store_support.h tests/profiler/store_support.c
STORE_TEST_LIBS = libstore.a libbase.a $(SQLITE_LIBS) $(JANSSON_LIBS) $(TEST_LIBS)
tests_profiler_check_store_SOURCES = tests/profiler/check_store.c $(STORE_TEST_SUPPORT)
tests_profiler_check_store_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_profiler_check_store_LDADD = $(STORE_TEST_LIBS)

check_PROGRAMS += tests/profiler/check_store_files
TESTS += tests/profiler/check_store_files
tests_profiler_check_store_files_SOURCES = tests/profiler/check_store_files.c $(STORE_TEST_SUPPORT)
tests_profiler_check_store_files_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_profiler_check_store_files_LDADD = $(STORE_TEST_LIBS)

check_PROGRAMS += tests/profiler/check_measure
TESTS += tests/profiler/check_measure
tests_profiler_check_measure_SOURCES = tests/profiler/check_measure.c
tests_profiler_check_measure_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_profiler_check_measure_LDADD = libprofiler.a libstore.a libbase.a $(SQLITE_LIBS) \
	$(JANSSON_LIBS) $(TEST_LIBS)

check_PROGRAMS += tests/profiler/check_profile
TESTS += tests/profiler/check_profile
tests_profiler_check_profile_SOURCES = tests/profiler/check_profile.c
tests_profiler_check_profile_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_profiler_check_profile_LDADD = libprofiler.a libstore.a libruntime.a libkernels.a \
	libmodel.a libbase.a $(SQLITE_LIBS) $(JANSSON_LIBS) $(MODEL_LIBS) $(CUDA_LIBS) $(TEST_LIBS)
