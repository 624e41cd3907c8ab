# Man pages come from the same tables as --help (evenkeel help --man COMMAND).
EK_MANUALS = docs/evenkeel-devices.1 docs/evenkeel-model.1 docs/evenkeel-profile.1 docs/evenkeel-run.1 \
	docs/evenkeel-check.1 docs/evenkeel-bench.1
man_MANS = $(EK_MANUALS)
CLEANFILES += $(EK_MANUALS)
docs/evenkeel-%.1: evenkeel$(EXEEXT)
	@$(MKDIR_P) docs
	$(AM_V_GEN)./evenkeel help --man $* >$@.tmp && mv $@.tmp $@
EXTRA_DIST += docs/formats.md docs/runtime.md docs/guide.md
