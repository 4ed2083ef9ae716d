#!/bin/bash
# One environment per peer below a folder of yours: benchmarks/peers/make.sh ENVIRONMENTS [NAME ...]   (9 GB in all)
set -eu
root=${1:?the folder for the environments}
shift
mkdir -p "$root"
make_() {  # name, packages ...
    local environment=$root/$1; shift
    [ -x "$environment/bin/python" ] || python3 -m venv "$environment"
    "$environment/bin/pip" install -q "torch>=2.9,<2.14" "$@"
}
for name in ${@:-llmcompressor modelopt torchao nncf gptqmodel autoround}; do
    case $name in
        llmcompressor) make_ "$name" llmcompressor==0.14.0.1 ;;
        modelopt) make_ "$name" nvidia-modelopt==0.47.0 transformers accelerate datasets requests ;;
        torchao) make_ "$name" torchao==0.18.0 transformers ;;
        nncf) make_ "$name" nncf==3.4.0 transformers torchao==0.18.0 ;;
        autoround) make_ "$name" auto-round==0.16.1 ;;
        gptqmodel)  # has no wheel: built here, without CUDA
            make_ "$name" transformers accelerate datasets setuptools wheel ninja numpy packaging
            BUILD_CUDA_EXT=0 "$root/$name/bin/pip" install -q --no-build-isolation gptqmodel==7.6.0
            ;;
        *) echo "no environment is called $name" >&2; exit 2 ;;
    esac
done
