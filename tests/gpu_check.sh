#!/bin/sh
# Runs every GPU path of Two Towers once, compares it with the CPU, and reports figures with their bounds.
#
#     tests/gpu_check.sh                        # on one NVIDIA GPU or several: under ten minutes
#     tests/gpu_check.sh --device cpu --small   # tries the script itself, without a GPU: the CPU against the CPU
#     tests/gpu_check.sh --help                 # the steps, the files, the exit status
#
# In the environment: OUT, the folder to write (default: gpu-check-TIME here); PYTHON, the interpreter (default: that of
# .venv, else python3).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "${PYTHON:-python3}") || {
    echo "error: no Python found; type \"make install\", or say where it is: PYTHON=/path/to/python $0" >&2
    exit 2
}
OUT=${OUT:-gpu-check-$(date +%Y%m%dT%H%M%S)}
export OUT PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$python" -m tests.benchmarks.gpu "$@"
