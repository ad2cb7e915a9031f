#!/usr/bin/env bash
# From shards to a video that training made possible, on two cores: the whole of mmtrain in seven commands.
#   make demo                     (or: bash recipes/demo.sh <mmtrain command>)
set -euo pipefail
cd "$(dirname "$0")/.."
mmtrain=${1:-mmtrain}
out=demo/$(date +%Y%m%d-%H%M%S)
mkdir -p "$out"

say() { printf '\n\033[1m%s\033[0m  (%d s)\n' "$1" "$SECONDS"; }

say "1/7 clips of a world whose truth is known"
$mmtrain shards world "$out/shards" --split train --count 600 --seed 1 --two-objects 0 --pace 0.6

say "2/7 what the run will do"
$mmtrain check svd_text_bridge "dataset.shards=$out/shards"

say "3/7 train: text to the conditioning of a frozen Stable Video Diffusion"
$mmtrain train svd_text_bridge "dataset.shards=$out/shards" "cache=$out/cache" "folder=$out/runs" \
    preview=clips preview.every=200 'preview.sd=${shipped:sd}' \
    'trainer.precision=${native_precision:cpu}' 'preview.prompts=["a large red circle moving left on a white background","a small yellow cross growing on black"]'
run=$(ls -d "$out"/runs/*/)

say "4/7 export: the adapter, and a folder that vanilla diffusers opens"
$mmtrain export "$run" --to "$out/adapter"

say "5/7 sample"
$mmtrain sample "$out/adapter" --out "$out/samples" --seed 7 --steps 10 --bits auto --first-frame sd \
    --prompt "a large red triangle moving right on a white background" \
    --prompt "a small blue square going round in a circle on black"

say "6/7 evaluate: base against adapted on held-out combinations"
$mmtrain evaluate "$out/adapter" --steps 10 --bits auto --count 40 --two-objects 8 --out "$out/evaluation"

say "7/7 report"
$mmtrain report "$run" --evaluation "$out/evaluation" --out "$out/report.html"

say "done"
ls "$out"/samples/*.mp4 "$out"/samples/*.png "$out"/report.html
echo "videos of every held-out prompt: $out/evaluation/clips"
