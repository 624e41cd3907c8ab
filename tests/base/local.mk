# SPDX-License-Identifier: Apache-2.0
check_PROGRAMS += tests/base/check_base
TESTS += tests/base/check_base
tests_base_check_base_SOURCES = tests/base/check_base.c
tests_base_check_base_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_base_check_base_LDADD = libbase.a $(JANSSON_LIBS) $(TEST_LIBS)
