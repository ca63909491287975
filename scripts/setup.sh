#!/usr/bin/env bash
# Creates the virtual environment $VENV and installs exactly what requirements/*.lock pin, for $FLAVOUR (cpu or cuda). Every file
# must have one of the hashes that its lock names; only DeepSpeed is built here, because it comes as source only.
# Called by make; by hand: PYTHON=python3.11 VENV=.venv FLAVOUR=cpu bash scripts/setup.sh. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
FLAVOUR=${FLAVOUR:-cpu}

fail() { echo "setup: $1" >&2; exit 2; }

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
  || fail "$("$PYTHON" --version) found; Python 3.11 or 3.12 is needed (set PYTHON=/path/to/python3.11)"

case "$FLAVOUR" in
  cpu) locks=(-r requirements/cpu.lock -r requirements/dev.lock) ;;
  cuda) locks=(-r requirements/cuda.lock) ;;
  *) fail "DEVICE must be auto, cpu or cuda, got $FLAVOUR" ;;
esac

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --quiet "$@" 2> >(grep -v "^WARNING: Location" >&2); }

echo "setup: installing the pinned dependencies ($FLAVOUR) into $VENV; a few minutes the first time" >&2
pip install --no-deps --require-hashes --only-binary=:all: -r requirements/build.lock
if ! pip install --no-deps --require-hashes --only-binary=:all: --no-binary=deepspeed --no-build-isolation "${locks[@]}"; then
  [ "$FLAVOUR" = cpu ] || fail "the pinned set could not be installed; pip's own words are above"
  # torch without CUDA carries the local version +cpu, which the plain registry does not have; its CUDA build has other hashes.
  fail "the pinned set could not be installed; if it was torch: 2.13.0's CPU build was not found, put PyTorch's CPU package index (shown at pytorch.org, 'Get started locally') into PIP_EXTRA_INDEX_URL and run make again"
fi
pip install --no-deps --no-build-isolation -e .
