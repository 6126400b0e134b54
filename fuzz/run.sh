#!/bin/sh
# Run fuzz targets for SECONDS each: fuzz/run.sh SECONDS TARGET...
#
# Coverage is all that the fuzzer steers by, and stable compilers can give it; only a
# sanitizer would need a nightly one, and there is next to no unsafe code to watch.
set -eu
cd "$(dirname "$0")/.."
seconds=$1
shift

# What is fuzzed is compiled as it is shipped: no cfg(fuzzing) in any dependency.
flags="--sanitizer none --no-cfg-fuzzing"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/tmp"

# shellcheck disable=SC2086 # the flags are words
cargo fuzz build $flags
for target in "$@"; do
    echo "--- $target, $seconds s"
    # New inputs go to the first directory, so that the stored ones stay as they are.
    mkdir "$scratch/$target"
    # shellcheck disable=SC2086
    TMPDIR="$scratch/tmp" cargo fuzz run $flags "$target" \
        "$scratch/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=20 -max_len=4096 -verbosity=0 -print_funcs=0 \
        -print_final_stats=1 -dict="fuzz/dictionaries/$target.dict"
done
