#!/usr/bin/env bash
# A brand's style from a folder: the whole journey in one command, of pictures and of clips.
#   make brand                         on the world's brand kit, 24 pictures and 8 clips
#   make brand FOLDER=photographs      on pictures of your own (bash recipes/brand.sh <mmtrain command> <folder>)
set -euo pipefail
cd "$(dirname "$0")/.."
mmtrain=${1:-mmtrain}
folder=${2:-}
out=brand/$(date +%Y%m%d-%H%M%S)
words='{prompt}, in zwx style'
patience=()
measured=fulfilment,forgetting,directional,style
mkdir -p "$out"

say() { printf '\n\033[1m%s\033[0m  (%d s)\n' "$1" "$SECONDS"; }

if [ -z "$folder" ]; then
    say "0/7 the world's brand kit"
    folder=$out/kit
    $mmtrain shards world "$folder" --brand --files 24,8 --seed 5 --two-objects 0
    measured=brand,brand_$measured # which knows that an outline is no object
    # Its held-out loss is lowest long before the logo is there, so that nobody needs to look at it often.
    patience=(trainer.patience=null trainer.checkpoint_every=200)
fi
ours=("dataset.folder=$folder" "dataset.shards=$out/shards" "folder=$out/runs")

say "1/7 train: a LoRA on Stable Diffusion (of your own pictures until the loss on the held-out part no longer falls)"
# Without the weights' decay shapes are learned by heart: recipes/LOG.md, "The brand's shapes, kept by weight decay".
$mmtrain train brand_style "${ours[@]}" "cache=$out/cache" optim=muon optim.lr=3e-3 optim.weight_decay=1 trainer.steps=1600 'trainer.precision=${native_precision:cpu}' \
    adapters.style.targets=whole ${patience[@]+"${patience[@]}"}
style=$(ls -d "$out"/runs/*-brand_style-*/)
heldout=$(ls -d "$out"/shards/*-heldout-*/)

say "2/7 export"
$mmtrain export "$style" --to "$out/style"

say "3/7 sample"
$mmtrain sample "$out/style" --out "$out/samples" --seed 7 --steps 12 --guidance-scale 2 \
    --prompt "a red circle on a white background, in zwx style" --prompt "a blue square on black, in zwx style"

say "4/7 evaluate: base against adapted, with the brand's words and without"
$mmtrain evaluate "$out/style" --metrics "$measured" --count 192 --two-objects 0 --steps 12 --words "$words" --neutral \
    --guidance-scale 2 --bits auto --reference "$heldout" --out "$out/evaluation"

say "5/7 what strength 0 leaves of it"
$mmtrain evaluate "$out/style" --metrics forgetting --count 4 --two-objects 0 --steps 6 --strength 0 \
    --gate "pixels forgotten <= 0" --out "$out/strength-0"

say "6/7 the page"
$mmtrain report "$style" --evaluation "$out/evaluation" --out "$out/report.html"

if compgen -G "$folder/*.mp4" > /dev/null; then
    say "7/7 the clips: a LoRA on Stable Video Diffusion, whose first frames the style draws"
    $mmtrain train brand_motion "${ours[@]}" "cache=$out/cache-motion" 'trainer.precision=${native_precision:cpu}' \
        ${patience[@]+"${patience[@]}"}
    motion=$(ls -d "$out"/runs/*-brand_motion-*/)
    $mmtrain export "$motion" --to "$out/motion"
    # Guided away from no first frame, clips lose rims and objects: recipes/LOG.md, "The brand's clips on the new network".
    $mmtrain evaluate "$out/motion" --metrics "${measured%%,forgetting*}" --count 32 --two-objects 0 --steps 10 --bits auto \
        --guidance-scale 1 --words "$words" --first-frame "$out/style" --first-frame-guidance 2 --out "$out/evaluation-motion"
    $mmtrain report "$motion" --evaluation "$out/evaluation-motion" --out "$out/motion.html"
fi

say "done"
ls "$out"/samples/*.png "$out"/*.html
