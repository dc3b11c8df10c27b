#!/usr/bin/env bash
# Checks that no test depends on speed: runs the test files that watch, stop and kill processes repeatedly, on a
# machine that is slowed down in several ways. Run it by hand before a release; CI does not run it.
#
#   tests/stress.sh                          all conditions and files, ten times each; takes hours
#   tests/stress.sh quiet busy               some conditions: quiet busy one-core slow-fsync no-fsync
#   REPEATS=2 FILES="tests/test_kill.py" tests/stress.sh one-core
#
#   quiet        nothing else runs
#   busy         4 busy loops run beside the tests
#   one-core     everything runs on the first core
#   slow-fsync   every fsync takes 0.1 s longer
#   no-fsync     fsync does nothing
#
# Prints one line per condition and file with the number of passed and failed runs. The logs of failed runs are kept
# in a folder whose name is printed. Exits with 1 if anything failed. MARK selects tests as pytest -m does. FAULTS is
# the share of the repetitions in tests/faults that are run.
set -euo pipefail
cd "$(dirname "$0")/.."

REPEATS="${REPEATS:-10}"
PYTHON="${PYTHON:-.venv/bin/python}"
MARK="${MARK:-not slow}"
export FAULTS="${FAULTS:-0.05}" PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
FILES="${FILES:-tests/test_autoencoders.py tests/test_generate.py tests/test_hostile.py tests/test_kill.py
  tests/test_latents.py tests/test_loader.py tests/test_machine.py tests/test_ranks.py tests/test_run_folder.py
  tests/test_spikes.py tests/test_study.py tests/test_trackers.py tests/test_training.py
  tests/faults/test_files.py tests/faults/test_numbers.py tests/faults/test_pauses.py tests/faults/test_processes.py}"
CONDITIONS=("$@")
[ $# -gt 0 ] || CONDITIONS=(quiet busy one-core slow-fsync no-fsync)

scratch="$(mktemp -d "${TMPDIR:-/tmp}/stress.XXXXXX")"
loops=()
failed=0

quieten() {
  [ ${#loops[@]} -eq 0 ] || kill "${loops[@]}" 2>/dev/null || true
  loops=()
}

finish() {
  quieten
  rm -f "$scratch"/*.so "$scratch"/*.c
  rmdir "$scratch" 2>/dev/null || echo "the logs of failed runs are in $scratch"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Builds the fsync that every process of a test calls, however it was started.
shim() {
  command -v gcc >/dev/null || { echo "stress.sh: $1 needs gcc, which is not installed" >&2; exit 2; }
  cat >"$scratch/$1.c"
  gcc -shared -fPIC -O1 -o "$scratch/$1.so" "$scratch/$1.c" -ldl
}

run() {
  local condition="$1" file="$2" passed=0 broken=0 log prefix=(env)
  case "$condition" in
    quiet | busy) ;;
    one-core) prefix=(taskset -c 0) ;;
    slow-fsync | no-fsync) prefix=(env LD_PRELOAD="$scratch/$condition.so") ;;
  esac
  for ((i = 1; i <= REPEATS; i++)); do
    log="$scratch/$condition-$(basename "$file" .py)-$i.log"
    if "${prefix[@]}" "$PYTHON" -m pytest -q -m "$MARK" -p no:cacheprovider "$file" >"$log" 2>&1; then
      passed=$((passed + 1))
      rm "$log"
    else
      broken=$((broken + 1))
      failed=1
    fi
  done
  printf '%-11s %-34s %3d passed %3d failed\n' "$condition" "$file" "$passed" "$broken"
}

for condition in "${CONDITIONS[@]}"; do
  case "$condition" in
    quiet | one-core) ;;
    busy)
      for _ in 1 2 3 4; do
        (while kill -0 $$ 2>/dev/null; do :; done) &
        loops+=($!)
      done
      ;;
    slow-fsync)
      shim "$condition" <<'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
static int late(const char *name, int file) {
  usleep(100000);
  return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
}
int fsync(int file) { return late("fsync", file); }
int fdatasync(int file) { return late("fdatasync", file); }
C
      ;;
    no-fsync)
      shim "$condition" <<'C'
int fsync(int file) { return 0; }
int fdatasync(int file) { return 0; }
C
      ;;
    *)
      echo "stress.sh: unknown condition $condition; use quiet, busy, one-core, slow-fsync or no-fsync" >&2
      exit 2
      ;;
  esac
  for file in $FILES; do
    run "$condition" "$file"
  done
  quieten
done
exit $failed
