if HAVE_PLANNER
noinst_LIBRARIES += libplanner.a
libplanner_a_SOURCES = planner/planner.h planner/costs.c planner/costs_read.c planner/costs_write.c planner/problem.h planner/groups.c planner/bound.h planner/levels.h planner/levels.c \
	planner/problem.c planner/memory.c planner/dp.c planner/bound.c planner/ilp.c planner/solve.c
endif
