#!/usr/bin/env bash
# Run all tests that are marked device, then the timings of benchmarks/run/gpu.py with the options
# given here, such as --write. On one CUDA device the whole takes less than eight minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
# Other tests may need packages that the machine lacks, so only these files are collected.
mapfile -t files < <(grep -rl --include='test_*.py' 'pytest\.mark\.device' tests)
"$python" -m pytest -p no:cacheprovider -rs -m device "${files[@]}"
"$python" -W ignore -m benchmarks.run.gpu "$@"
