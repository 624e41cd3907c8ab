# SPDX-License-Identifier: Apache-2.0
CLI_TESTS = tests/cli/usage.sh tests/cli/completion.sh tests/cli/streams.sh \
	tests/cli/interrupt.sh tests/cli/faults.sh \
	tests/cli/pipeline.sh tests/cli/pictures.sh tests/cli/given.sh tests/cli/report.sh \
	tests/cli/many-gpus.sh tests/cli/guide.sh
dist_check_SCRIPTS += $(CLI_TESTS)
TESTS += $(CLI_TESTS)
EXTRA_DIST += tests/cli/lib.sh
MOSTLYCLEANFILES += tests/cli/screenshots/*.png
check_PROGRAMS += tests/cli/one_json
tests_cli_one_json_SOURCES = tests/cli/one_json.c
tests_cli_one_json_LDADD = $(JANSSON_LIBS)
