# SPDX-License-Identifier: Apache-2.0
SERVER_TEST_LIBS = libserver.a $(RUNTIME_TEST_LIBS) $(MICROHTTPD_LIBS)

check_PROGRAMS += tests/server/check_request
TESTS += tests/server/check_request
tests_server_check_request_SOURCES = tests/server/check_request.c
tests_server_check_request_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_server_check_request_LDADD = $(SERVER_TEST_LIBS)

check_PROGRAMS += tests/server/check_serve
TESTS += tests/server/check_serve
tests_server_check_serve_SOURCES = tests/server/check_serve.c tests/server/live.c \
	tests/server/live.h tests/runtime/support.c
tests_server_check_serve_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_server_check_serve_LDADD = $(SERVER_TEST_LIBS)

check_PROGRAMS += tests/server/check_guests
TESTS += tests/server/check_guests
tests_server_check_guests_SOURCES = tests/server/check_guests.c tests/server/live.c \
	tests/runtime/support.c
tests_server_check_guests_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_server_check_guests_LDADD = $(SERVER_TEST_LIBS)

check_PROGRAMS += tests/server/check_choices
TESTS += tests/server/check_choices
tests_server_check_choices_SOURCES = tests/server/check_choices.c tests/server/live.c \
	tests/runtime/support.c
tests_server_check_choices_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_server_check_choices_LDADD = $(SERVER_TEST_LIBS)
