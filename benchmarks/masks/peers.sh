#!/bin/bash
# One environment per peer below a folder of yours: benchmarks/masks/peers.sh ENVIRONMENTS   (6 GB)
set -eu
root=${1:?the folder for the environments}
mkdir -p "$root"
make_() {  # name, packages ...
    local environment=$root/$1; shift
    [ -x "$environment/bin/python" ] || python3 -m venv "$environment"
    "$environment/bin/pip" install -q "torch>=2.9,<2.14" "$@"
}
make_ llmcompressor llmcompressor==0.14.0.1
make_ modelopt nvidia-modelopt==0.47.0 transformers accelerate datasets requests
make_ torchao torchao==0.18.0 transformers
make_ nncf nncf==3.4.0 transformers torchao==0.18.0
