#!/bin/sh
# The path of README's first page on real photographs, timm's training before it, and what precisions cost; see path.md.
#
#   sh benchmarks/path.sh PHOTOS train.parquet validation.parquet test.parquet
#
# What is there already is taken as it is: remove her/, hers/, lean/, runs/ or exported/ to do that step again.
set -eu
here=$(dirname "$0")
photos=$1
names=dress,hat,longsleeve,outwear,pants,shirt,shoes,shorts,skirt,t-shirt

[ -d "$photos" ] || python "$here/photographs.py" folders "$photos" train="$2" val="$3" test="$4" --names $names
[ -d her ] || python "$here/photographs.py" train "$photos" --out her --size 64 --batch-size 32 --lr 7e-4 --epochs 12
python "$here/photographs.py" validate "$photos/test" --checkpoint her/last.pth.tar --size 64 --ema-weights
[ -d hers ] || leanconv import-weights her/last.pth.tar timm/resnet18 --ema --set num_classes=10 --out hers --size 3,64,64 \
    --mean .485,.456,.406 --std .229,.224,.225 --crop .95 --interpolation bicubic --no-exif --classes $names
leanconv eval hers --data "folder:$photos"
[ -d lean ] || leanconv rewrite hers --rewrite octave:alpha=0.5 --out lean
leanconv eval lean --data "folder:$photos"
[ -d runs/lean/model ] || leanconv train --model lean --data "folder:$photos" --teacher hers --out runs/lean
leanconv compare hers lean runs/lean --data "folder:$photos"
python "$here/precisions.py" dense=hers octave=runs/lean --data "folder:$photos/test" --calibrate "folder:$photos/val" \
    --out exported > precisions.md
leanconv predict exported/octave-fp32.xml "$photos/test/hat" --top 2 --contact-sheet hats.png
