#!/usr/bin/env bash
# Writes the hashes of requirements/*.lock again (scripts/lock.py); --check only looks.
#
#   to move a pin      change its version in the lock, then: bash scripts/lock.sh
#   to resolve cuda    bash scripts/lock.sh cuda: cuda.lock again from pyproject.toml, with the versions of cpu.lock where they fit
#
# uv asks the index; it is installed into a throw-away environment, by hash (requirements/tools.lock). PYTHON (python3) makes that
# environment. The index is pip's: PIP_INDEX_URL, or what pip is configured with.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

"$PYTHON" -m venv "$tools/venv"
pip() { "$tools/venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install --no-deps --require-hashes --only-binary=:all: -r requirements/tools.lock
export PATH="$tools/venv/bin:$PATH" UV_CACHE_DIR="$tools/cache" UV_NO_CONFIG=1 UV_SYSTEM_CERTS=1
index=${PIP_INDEX_URL:-$(pip config get global.index-url 2>/dev/null || true)}
[ -z "$index" ] || export UV_DEFAULT_INDEX=$index

if [ "${1:-}" = cuda ]; then
  shift
  title="# Everything a run needs on machines with NVIDIA GPUs (Linux on x86-64), and the tests, exact; by scripts/lock.sh cuda."
  # uv keeps the versions that the output names already, where they fit.
  sed -n 's/^\([a-z0-9-]*==[^ ]*\).*/\1/p' requirements/cpu.lock requirements/dev.lock >"$tools/cuda.txt"
  echo 'cuda-python>=13' >"$tools/constraints.txt" # an older one has no dependencies, and so always fits
  uv pip compile --quiet --no-header --no-annotate --python-version=3.11 --python-platform=x86_64-manylinux_2_31 \
    --only-binary=:all: --no-binary=deepspeed --extra=cuda --extra=dev --constraints="$tools/constraints.txt" \
    pyproject.toml -o "$tools/cuda.txt"
  { echo "$title"; cat "$tools/cuda.txt"; } >requirements/cuda.lock
fi
python scripts/lock.py "$@"
