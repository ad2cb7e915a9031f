#!/usr/bin/env bash
# The shipped tiny backbones, from nothing: data, CLIP, image codec, video codec, Stable Diffusion, Stable Video
# Diffusion. Each run can be resumed (mmtrain train --resume latest); figures are in recipes/LOG.md.
#   make backbones                     (or: bash recipes/backbones.sh <mmtrain command> <output folder>)
set -euo pipefail
cd "$(dirname "$0")/.."
mmtrain=${1:-mmtrain}
out=${2:-data/backbones}
runs=$(mktemp -d runs-backbones-XXXX)

[ -d data/shards/world ] || $mmtrain shards world data/shards/world --split train --count 6000 --seed 0
[ -d data/shards/stills ] || $mmtrain shards world data/shards/stills --split train --stills --count 30000 --seed 0
[ -d data/shards/slow ] || $mmtrain shards world data/shards/slow --split train --count 4000 --seed 0 --pace 0.6 --two-objects 0.2
[ -d data/shards/turn ] || $mmtrain shards world data/shards/turn --split train --count 4000 --seed 2000 --pace 0.6 --two-objects 0.2 \
    --motions circling=0.3,still=0.12
[ -d data/shards/clutter ] || $mmtrain shards world data/shards/clutter --split clutter --count 10000 --seed 0

backbone() { # folder, recipe, log's name, further words
    local folder=$1 recipe=$2 log=$3 run=$runs/$3
    shift 3
    $mmtrain train "$recipe" "folder=$run" "$@"
    rm -rf "${folder:?}"
    $mmtrain export "$(ls -d "$run"/*/)" --to "$folder" --dtype fp16
    mkdir -p "$out/logs"
    cut -d, -f1,2 "$run"/*/metrics.csv > "$out/logs/$log.csv" # step and loss
}
mkdir -p "$out"
backbone "$out/clip" pretrain_clip clip
backbone "$runs/codec" pretrain_codec codec
backbone "$runs/codec_temporal" pretrain_codec_temporal codec_temporal "backbone.path=$runs/codec"
backbone "$runs/sd" pretrain_sd sd "backbone.codec=$runs/codec" "backbone.clip=$out/clip"
# Goes on from there with larger batches. With trainer.precision=bf16-mixed a CPU that multiplies in 16 bits (AMX, or
# AVX-512's bfloat16 products) does it in half the time; any other is far slower so.
backbone "$out/sd" pretrain_sd sd_further backbone=sd "backbone.path=$runs/sd" trainer.batch_size=64 trainer.steps=7000
backbone "$runs/svd" pretrain_svd svd "backbone.codec=$runs/codec_temporal" "backbone.clip=$out/clip" "backbone.sd=$out/sd" \
    dataset.shards=data/shards/slow cache=data/cache/slow
# Goes on from there on other clips, of which three in ten go round in a circle: by itself it made none that did.
backbone "$out/svd" pretrain_svd svd_further backbone=svd "backbone.path=$runs/svd" "backbone.text_path=$out/clip" \
    backbone.sigma_mean=1.2 backbone.sigma_std=1.3 optim.lr=1.5e-3 trainer.steps=2400 dataset.shards=data/shards/turn cache=data/cache/turn
echo "backbones: $out"
