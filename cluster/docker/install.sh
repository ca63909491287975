#!/usr/bin/env bash
# Installs the package and exactly what requirements/FLAVOUR.lock pins, by hash, into the active environment: install.sh cpu | cuda, from
# the repository's root, for the Dockerfiles and the launcher files. DeepSpeed, which comes as source, is built last, against the torch that is then there, with
# the operators that DS_BUILD_… name.
set -euo pipefail

lock=requirements/$1.lock
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT

# An entry begins at the start of a line; its hashes follow on indented ones.
awk -v own="$parts/deepspeed.lock" -v rest="$parts/rest.lock" '
  /^[A-Za-z0-9]/ { mine = /^deepspeed==/ }
  { print > (mine ? own : rest) }' "$lock"

pip install --no-deps --require-hashes --only-binary=:all: -r requirements/build.lock
pip install --no-deps --require-hashes --only-binary=:all: -r "$parts/rest.lock"
pip install --no-deps --require-hashes --no-build-isolation -r "$parts/deepspeed.lock"
pip install --no-deps --no-build-isolation .
