dist_check_SCRIPTS += tests/cli/usage.sh tests/cli/pipeline.sh
TESTS += tests/cli/usage.sh tests/cli/pipeline.sh
EXTRA_DIST += tests/cli/lib.sh
