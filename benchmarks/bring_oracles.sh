#!/usr/bin/env bash
# Wheels of the libraries of record for a machine that reaches no registry: Python 3.12 on x86-64 Linux, torch 2.11.
# Left out is what such a machine has beside PyTorch (transformers, torch-geometric, torchvision, opencv, matplotlib,
# ...), and what these libraries declare but do not need to run a model (polars, ultralytics-thop, orjson).
# usage: benchmarks/bring_oracles.sh [FOLDER]     -> FOLDER/*.whl (.whl when left out, which git ignores)
# There: python3 -m pip install --no-index --no-deps --no-compile --upgrade --target SITE FOLDER/*.whl
#        PYTHONPATH=SITE python3 benchmarks/architectures.py ...
# fbgemm-gpu-cpu belongs to one torch (1.6 to 2.11, 1.8 to 2.13); torchrec's tables run by torch's own kernels.
# torchrec.models.dlrm imports torchrec.datasets, and that iopath, whose last wheel is 0.1.9.
set -euo pipefail
folder="${1:-.whl}"
mkdir -p "$folder"
platforms=()
for p in manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${p}_x86_64")
done
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$folder" \
  --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none "${platforms[@]}" \
  diffusers==0.42.1 importlib-metadata==9.1.0 ultralytics==8.4.190 gsplat==1.5.3 \
  torchrec==1.6.1 fbgemm-gpu-cpu==1.6.0 tensordict==0.15.3 pyvers==0.2.3 iopath==0.1.9
du -cm "$folder"/*.whl | sort -n
