#!/usr/bin/env bash
# The shipped tiny backbones, from nothing: data, CLIP, image codec, video codec, Stable Diffusion, Stable Video
# Diffusion. Each run can be resumed (mmtrain train --resume latest); figures are in recipes/LOG.md.
#   make backbones                     (or: bash recipes/backbones.sh <mmtrain command> <output folder>)
set -euo pipefail
cd "$(dirname "$0")/.."
mmtrain=${1:-mmtrain}
out=${2:-data/backbones}
runs=$(mktemp -d runs-backbones-XXXX)

[ -d data/shards/world ] || $mmtrain shards world data/shards/world --split train --count 3000 --seed 0
[ -d data/shards/clutter ] || $mmtrain shards world data/shards/clutter --split clutter --count 10000 --seed 0

backbone() { # name, recipe, further words
    local name=$1 recipe=$2
    shift 2
    $mmtrain train "$recipe" "folder=$runs/$name" "$@"
    rm -rf "${out:?}/$name"
    $mmtrain export "$(ls -d "$runs/$name"/*/)" --to "$out/$name" --dtype fp16
}
mkdir -p "$out"
backbone clip pretrain_clip
backbone codec pretrain_codec
backbone codec_temporal pretrain_codec_temporal "backbone.path=$out/codec"
backbone sd pretrain_sd "backbone.codec=$out/codec" "backbone.clip=$out/clip"
backbone svd pretrain_svd "backbone.codec=$out/codec_temporal" "backbone.clip=$out/clip"
echo "backbones: $out"
