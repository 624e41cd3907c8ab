# SPDX-License-Identifier: GPL-3.0-or-later
if HAVE_PLANNER
noinst_LIBRARIES += libplanner.a
libplanner_a_SOURCES = planner/planner.h planner/problem.h planner/bound.h planner/levels.h \
	planner/costs.c planner/costs_read.c planner/costs_write.c planner/profile.c planner/calibrate.c \
	planner/hardware.h planner/cards.c planner/estimate.c planner/scale.c planner/groups.c \
	planner/problem.c \
	planner/memory.c planner/times.c planner/bound.c planner/shared.h \
	planner/shared.c planner/dp.c planner/reduce.h planner/reduce.c \
	planner/glpk_guard.h planner/glpk_guard.c planner/ilp_memory.h planner/ilp_memory.c \
	planner/ilp.c planner/levels.c planner/choices.c \
	planner/incumbent.c planner/attempt.h planner/solve.c planner/certify.c \
	planner/turns.h planner/turns.c planner/place.c planner/plan_json.c \
	planner/plan_print.c planner/assess.c planner/recipes.c \
	planner/explain.c planner/alternatives.c planner/device_map.h planner/device_map.c \
	planner/pareto.c planner/near.c planner/plan_file.h planner/plan_file.c planner/export.c \
	planner/page.h planner/page.c planner/report.c planner/report_more.c planner/simulate.h \
	planner/simulate.c planner/cluster.h planner/cluster.c

bin_PROGRAMS += evenkeel-plan
evenkeel_plan_SOURCES = planner/main.c planner/commands.h planner/plan_arguments.h \
	planner/plan_arguments.c planner/plan_given.c planner/cmd_plan.c planner/cmd_export.c \
	planner/cmd_hardware.c planner/cmd_simulate.c planner/cmd_cluster.c
evenkeel_plan_LDADD = libplanner.a libstore.a libmodel.a libbase.a $(PLANNER_LIBS)
PLANNER_LIBS = -lglpk $(SQLITE_LIBS) $(MODEL_LIBS) $(JANSSON_LIBS) -lm
endif
EXTRA_DIST += docs/planner.md
