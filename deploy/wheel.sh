#!/usr/bin/env bash
# The Python package: deploy/wheel.sh puts a program that deploy/static.sh has built into the wheel
# consortia-VERSION-py3-none-PLATFORM.whl, with the sdist beside it, both in target/out; deploy/wheel.sh PROGRAM [FOLDER] takes another
# program, or writes elsewhere. It needs Python 3.9 or newer and nothing else: no maturin, no connection.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${2:-${CARGO_TARGET_DIR:-target}/out}
program=${1:-}
if [ -z "$program" ]; then
    version=$(sed --quiet 's/^__version__ = "\(.*\)"/\1/p' python/consortia/_version.py)
    program=$out/consortia-$version-$(uname -m)-unknown-linux-gnu
    [ -e "$program" ] || deploy/static.sh
fi
CONSORTIA_BINARY=$program python3 python/build_package.py "$out"
