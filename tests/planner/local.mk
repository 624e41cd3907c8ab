# SPDX-License-Identifier: GPL-3.0-or-later
if HAVE_PLANNER
PLANNER_TEST_LIBS = libplanner.a libstore.a libmodel.a libbase.a $(PLANNER_LIBS) $(TEST_LIBS)

check_PROGRAMS += tests/planner/check_brute
TESTS += tests/planner/check_brute
tests_planner_check_brute_SOURCES = tests/planner/check_brute.c tests/planner/brute.h \
	tests/planner/brute.c tests/planner/instances.h tests/planner/instances.c
tests_planner_check_brute_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_planner_check_brute_LDADD = $(PLANNER_TEST_LIBS)

check_PROGRAMS += tests/planner/check_planner
TESTS += tests/planner/check_planner
PLANNER_TEST_SUPPORT = tests/planner/instances.h tests/planner/instances.c tests/planner/small.h \
	tests/planner/small.c
tests_planner_check_planner_SOURCES = tests/planner/check_planner.c $(PLANNER_TEST_SUPPORT)
tests_planner_check_planner_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_planner_check_planner_LDADD = $(PLANNER_TEST_LIBS)

check_PROGRAMS += tests/planner/check_explain
TESTS += tests/planner/check_explain
tests_planner_check_explain_SOURCES = tests/planner/check_explain.c $(PLANNER_TEST_SUPPORT)
tests_planner_check_explain_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_planner_check_explain_LDADD = $(PLANNER_TEST_LIBS)

check_PROGRAMS += tests/planner/check_given
TESTS += tests/planner/check_given
tests_planner_check_given_SOURCES = tests/planner/check_given.c tests/planner/small.h \
	tests/planner/small.c
tests_planner_check_given_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_planner_check_given_LDADD = $(PLANNER_TEST_LIBS)

check_PROGRAMS += tests/planner/check_scale
TESTS += tests/planner/check_scale
tests_planner_check_scale_SOURCES = tests/planner/check_scale.c
tests_planner_check_scale_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_planner_check_scale_LDADD = $(PLANNER_TEST_LIBS)

check_PROGRAMS += tests/planner/check_export
TESTS += tests/planner/check_export
tests_planner_check_export_SOURCES = tests/planner/check_export.c
tests_planner_check_export_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_planner_check_export_LDADD = $(PLANNER_TEST_LIBS)

check_PROGRAMS += tests/planner/check_simulate
TESTS += tests/planner/check_simulate
tests_planner_check_simulate_SOURCES = tests/planner/check_simulate.c tests/planner/small.h \
	tests/planner/small.c
tests_planner_check_simulate_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_planner_check_simulate_LDADD = $(PLANNER_TEST_LIBS)

check_PROGRAMS += tests/planner/check_solve
TESTS += tests/planner/check_solve
tests_planner_check_solve_SOURCES = tests/planner/check_solve.c $(PLANNER_TEST_SUPPORT)
tests_planner_check_solve_CPPFLAGS = $(AM_CPPFLAGS) $(CHECK_CFLAGS)
tests_planner_check_solve_LDADD = $(PLANNER_TEST_LIBS)
endif
EXTRA_DIST += tests/planner/machines
if HAVE_PLANNER
dist_check_SCRIPTS += tests/planner/test_command.sh
TESTS += tests/planner/test_command.sh
endif
