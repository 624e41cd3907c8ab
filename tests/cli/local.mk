dist_check_SCRIPTS += tests/cli/usage.sh tests/cli/pipeline.sh tests/cli/pictures.sh
TESTS += tests/cli/usage.sh tests/cli/pipeline.sh tests/cli/pictures.sh
EXTRA_DIST += tests/cli/lib.sh
