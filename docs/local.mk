# SPDX-License-Identifier: Apache-2.0
# Man pages come from the same tables as --help (evenkeel help --man COMMAND); those of the commands
# that evenkeel-plan runs end with its own --help.
EK_MANUALS = docs/evenkeel.1 docs/evenkeel-devices.1 docs/evenkeel-model.1 \
	docs/evenkeel-profile.1 docs/evenkeel-run.1 docs/evenkeel-serve.1 \
	docs/evenkeel-check.1 docs/evenkeel-bench.1
man_MANS = $(EK_MANUALS)
CLEANFILES += $(EK_MANUALS)
docs/evenkeel.1: evenkeel$(EXEEXT)
	@$(MKDIR_P) docs
	$(AM_V_GEN)./evenkeel help --man >$@.tmp && mv $@.tmp $@
docs/evenkeel-%.1: evenkeel$(EXEEXT)
	@$(MKDIR_P) docs
	$(AM_V_GEN)./evenkeel help --man $* >$@.tmp && mv $@.tmp $@

completiondir = $(datadir)/bash-completion/completions
completion_DATA = docs/completion/evenkeel
CLEANFILES += docs/completion/evenkeel
docs/completion/evenkeel: evenkeel$(EXEEXT)
	@$(MKDIR_P) docs/completion
	$(AM_V_GEN)./evenkeel help --completion >$@.tmp && mv $@.tmp $@

if HAVE_PLANNER
EK_PLAN_MANUALS = docs/evenkeel-plan.1 docs/evenkeel-export.1 docs/evenkeel-report.1 \
	docs/evenkeel-simulate.1 docs/evenkeel-cluster.1 docs/evenkeel-hardware.1
man_MANS += $(EK_PLAN_MANUALS)
CLEANFILES += $(EK_PLAN_MANUALS)
$(EK_PLAN_MANUALS): evenkeel$(EXEEXT) evenkeel-plan$(EXEEXT)
	@$(MKDIR_P) docs
	$(AM_V_GEN)name=`basename $@ .1 | sed 's/^evenkeel-//'` && \
	  ./evenkeel help --man $$name >$@.tmp && \
	  { echo .SH USAGE; echo .nf; \
	    ./evenkeel-plan $$name --help | sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e "s/^[.']/\\\\\&&/"; \
	    echo .fi; } >>$@.tmp && mv $@.tmp $@
endif

# what messages and manuals point to; the rest is for those who change the program
dist_doc_DATA = README.md docs/guide.md docs/serving.md docs/references.md docs/formats.md \
	docs/costs.md
EXTRA_DIST += docs/architecture.md docs/runtime.md results
