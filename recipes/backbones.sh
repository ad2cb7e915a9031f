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

backbone() { # folder, recipe, further words
    local folder=$1 recipe=$2
    shift 2
    $mmtrain train "$recipe" "folder=$runs/$recipe" "$@"
    rm -rf "${folder:?}"
    $mmtrain export "$(ls -d "$runs/$recipe"/*/)" --to "$folder" --dtype fp16
    mkdir -p "$out/logs"
    cp "$runs/$recipe"/*/metrics.csv "$out/logs/${recipe#pretrain_}.csv"
}
mkdir -p "$out"
backbone "$out/clip" pretrain_clip
backbone "$runs/codec" pretrain_codec
backbone "$runs/codec_temporal" pretrain_codec_temporal "backbone.path=$runs/codec"
backbone "$out/sd" pretrain_sd "backbone.codec=$runs/codec" "backbone.clip=$out/clip"
backbone "$out/svd" pretrain_svd "backbone.codec=$runs/codec_temporal" "backbone.clip=$out/clip"
echo "backbones: $out"
