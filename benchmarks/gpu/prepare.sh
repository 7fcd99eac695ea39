#!/usr/bin/env bash
# Get a checkout ready for first_run.sh on a GPU machine without network. Where there is PyPI:
#
#     bash benchmarks/gpu/prepare.sh [cupy_cache.tgz]
#
# It fills the ignored folder .gpu/ with the wheels that such a machine lacks (2.2 MB) and, if an
# earlier run brought one back in $OUT, CuPy's cache of compiled kernels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mkdir -p .gpu/whl
[ $# -eq 0 ] || cp "$1" .gpu/cupy_cache.tgz

# SpikingJelly and what it needs beside the usual packages (Python 3.12, torch 2.11, timm,
# tensorboard, pytest-xdist, CuPy 14 ...). Nothing else: another torch or numpy in front of the
# machine's own would break it.
wheels=(spikingjelly==2.0.0 jsonargparse==4.53.0 docstring-parser==0.18.0 typeshed-client==2.14.0
        loguru==0.7.3 SciencePlots==2.2.2)
rm -f .gpu/whl/*.whl
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 -d .gpu/whl "${wheels[@]}"
ls -l .gpu .gpu/whl
