#!/usr/bin/env bash
# From tags to a deployed segmenter, on generated scenes, with mIoU after each stage. docs/pipeline.md explains it.
#
#   bash examples/pipeline.sh [FOLDER]            under half an hour on two cores
#   LOCALIZER=embedded bash examples/pipeline.sh  begins with the embedded model instead of training one
#   LOCALIZER=runs/mine bash examples/pipeline.sh begins with a run of `wsss-rt train` on scenes
#
# The same command goes on where it stopped. Settings are the environment variables below; a folder keeps to those
# that it began with. FOLDER/results.json holds every figure, seconds and processor seconds.
set -euo pipefail
work=${1:-runs/pipeline}

: "${LOCALIZER:=train}"           # train, embedded, or a run folder
: "${LOCALIZER_IMAGES:=24000}"    # scenes that the localizer sees, with their tags
: "${TRAIN_SCENES:=1200}"         # scenes that get pseudo-labels, and teach the segmenter
: "${AFFINITY_SCENES:=300}"       # the first of them teach the affinity net
: "${AFFINITY_IMAGES:=1500}"      # crops that it sees
: "${CRF:=--crf-alpha 8}"         # options of the CRF and of the walk; chosen on scenes of seed 990011
: "${WALK:=--walk-alpha 8 --walk-steps 8}"
: "${LABELS:=crf}"                # what refines the pseudo-labels: crf, walk or walk+crf
: "${STUDENTS:=segvit}"           # segvit, segvit-shrunk, conv-head: one or several; more may be added later
: "${STUDENT_IMAGES:=40000}"      # images that each sees; crops of 96 px, as labelling shows it at 128
: "${STUDENT_OPTIONS:=--img-size 96 --set data.input_size=128 --set data.val_images=40}"
: "${HELD_OUT:=150}"              # scenes that nothing learns from
: "${SEED:=11}"                   # of the scenes; the held-out ones take the next
: "${THREADS:=1}"                 # of PyTorch in training; scenes are drawn beside it
: "${WSSS_RT:=wsss-rt}"           # the program, by name or path
: "${PYTHON:=python3}"            # reads and writes JSON, with its standard library

settings=$(for name in LOCALIZER LOCALIZER_IMAGES TRAIN_SCENES AFFINITY_SCENES AFFINITY_IMAGES \
  CRF WALK LABELS STUDENT_IMAGES STUDENT_OPTIONS HELD_OUT SEED; do echo "$name=${!name}"; done)
mkdir -p "$work"/{stages,miou}
if [ -f "$work/settings" ] && [ "$(cat "$work/settings")" != "$settings" ]; then
  echo "pipeline.sh: $work was begun with other settings; choose another folder, or repeat them:" >&2
  diff "$work/settings" <(echo "$settings") >&2 || true
  exit 2
fi
echo "$settings" >"$work/settings"

# stage NAME COMMAND...: run it unless it is done, and keep how long it took: wall, user and system seconds
stage() {
  local name=$1; shift
  if [ -f "$work/stages/$name" ]; then return; fi
  echo; echo "== $name: $*"
  # what is left of a stage that was stopped is continued, or written anew
  local TIMEFORMAT='%R %U %S'
  { time "$@" 2>&3; } 3>&2 2>"$work/stages/$name.time"
  tail -n 1 "$work/stages/$name.time" >"$work/stages/$name.part"
  rm "$work/stages/$name.time"
  mv "$work/stages/$name.part" "$work/stages/$name"
  read -r wall user system <"$work/stages/$name"
  echo "-- $name: $wall s, $user s of processors"
}

# score NAME SCENES TEXT: mIoU of masks/NAME against the truth, over the images that have a mask
score() {
  local found=$work/miou/$1.json
  if [ ! -f "$found" ]; then
    "$WSSS_RT" eval "$work/masks/$1" "$2/SegmentationClass" --classes scenes --allow-missing --worst 0 --json "$found" >/dev/null
  fi
  "$PYTHON" - "$found" "$3" <<'PYTHON' | tee -a "$work/table.txt"
import json, sys
print(f"   mIoU {100 * json.load(open(sys.argv[1]))['miou']:5.1f} %  {sys.argv[2]}")
PYTHON
}

train() { OMP_NUM_THREADS=$THREADS "$WSSS_RT" train "$@"; }
export_run() { rm -f "$2"; "$WSSS_RT" export "$1" --out "$2"; }
# label NAME SCENES OPTIONS...: masks/NAME
label() { "$WSSS_RT" label "$2/JPEGImages" --out "$work/masks/$1" --format png --quiet "${@:3}"; }

: >"$work/table.txt"
learn=$work/scenes/train sample=$work/scenes/affinity held=$work/scenes/held-out

# 1. Images and their tags. A seed's first scenes are the same however many follow: the sample is a part of the rest.
stage scenes "$WSSS_RT" scenes --out "$learn" --count "$TRAIN_SCENES" --seed "$SEED"
stage scenes-affinity "$WSSS_RT" scenes --out "$sample" --count "$AFFINITY_SCENES" --seed "$SEED"
stage scenes-held-out "$WSSS_RT" scenes --out "$held" --count "$HELD_OUT" --seed $((SEED + 1))

# 2. The localizer learns from tags. Validation chooses its map and thresholds, on scenes of yet another seed.
run=$LOCALIZER
model=(--model "$work/localizer.onnx")
backbone=()
if [ "$LOCALIZER" = train ]; then
  run=$work/localizer
  stage localizer train mctformer-v2 --data scenes --recipe scenes-small --images "$LOCALIZER_IMAGES" --seed 1 --out "$run"
fi
if [ "$LOCALIZER" = embedded ]; then
  model=(--model scenes-v2)
else
  stage localizer-export export_run "$run" "$work/localizer.onnx"
  backbone=(--weights "$run")
fi
stage label-localizer label localizer "$sample" --tags "$sample/labels.csv" "${model[@]}"
score localizer "$learn" "localizer, tags given, first $AFFINITY_SCENES training scenes"
stage label-held-given label held-given "$held" --tags "$held/labels.csv" "${model[@]}"
score held-given "$held" "localizer, tags given, held-out scenes"
stage label-held-predicted label held-predicted "$held" "${model[@]}"
score held-predicted "$held" "localizer, tags predicted, held-out scenes"

# 3. An affinity net learns from what a CRF is sure of, with a low and with a high power of background. What the CRF,
#    the walk, and both make of the localizer's masks shows on the held-out scenes.
for alpha in 4 32; do
  stage "label-alpha-$alpha" label "alpha-$alpha" "$sample" --tags "$sample/labels.csv" "${model[@]}" \
    --refine crf --crf-alpha "$alpha"
done
stage affinity train psa --data "$sample/JPEGImages" --tags "$sample/labels.csv" --recipe psa-small \
  --low-alpha "$work/masks/alpha-4" --high-alpha "$work/masks/alpha-32" --images "$AFFINITY_IMAGES" --out "$work/affinity"
stage affinity-export export_run "$work/affinity" "$work/affinity.onnx"
# refinement NAME: the options of `label` for it, in $options
refinement() {
  options=(--refine "$1")
  if [[ $1 == *crf* ]]; then options+=($CRF); fi
  if [[ $1 == *walk* ]]; then options+=($WALK --affinity "$work/affinity.onnx"); fi
}
for name in crf walk walk+crf; do
  refinement "$name"
  stage "label-held-$name" label "held-$name" "$held" --tags "$held/labels.csv" "${model[@]}" "${options[@]}"
  score "held-$name" "$held" "localizer and $name, tags given, held-out scenes"
done

# 4. Pseudo-labels: the localizer's masks, refined, tags given. Those of held-out scenes are for comparison alone; with
#    tags given they stand above.
refinement "$LABELS"
stage label-pseudo label pseudo "$learn" --tags "$learn/labels.csv" "${model[@]}" "${options[@]}"
score pseudo "$learn" "pseudo-labels ($LABELS), tags given, training scenes: the segmenters' teachers"
stage label-held-pseudo label held-pseudo "$held" "${model[@]}" "${options[@]}"
score held-pseudo "$held" "pseudo-labels ($LABELS), tags predicted, held-out scenes"

for student in $STUDENTS; do
  # 5. The segmenter learns from the pseudo-labels alone: it sees no tag, neither here nor later.
  stage "$student" train "$student" --data "$learn/JPEGImages" --masks "$work/masks/pseudo" --recipe segmenter-small \
    "${backbone[@]}" $STUDENT_OPTIONS --images "$STUDENT_IMAGES" --out "$work/$student"

  # 6. One file, which labels without PyTorch.
  stage "$student-export" export_run "$work/$student" "$work/$student.onnx"
  stage "label-$student" label "$student" "$held" --model "$work/$student.onnx"
  score "$student" "$held" "segmenter ($student), ONNX, no tags, held-out scenes"

  # 7. Its teachers had a CRF, which draws the edges that tokens of 8 px blur: so it is looked at with one too.
  stage "label-$student-crf" label "$student-crf" "$held" --model "$work/$student.onnx" --flip --refine crf
  score "$student-crf" "$held" "segmenter ($student) and CRF, no tags, held-out scenes"
done

"$PYTHON" - "$work" <<'PYTHON'
"""Everything into results.json."""
import json, sys
from pathlib import Path

work = Path(sys.argv[1])
settings = dict(line.split("=", 1) for line in (work / "settings").read_text().splitlines())
seconds = {}
# not those that were stopped
ended = [path for path in (work / "stages").iterdir() if path.suffix not in (".time", ".part")]
for path in sorted(ended, key=lambda path: path.stat().st_mtime):
    wall, user, system = map(float, path.read_text().split())
    seconds[path.name] = {"wall": wall, "processor": round(user + system, 3)}
total = {key: round(sum(stage[key] for stage in seconds.values()), 1) for key in ("wall", "processor")}
miou = {path.stem: json.loads(path.read_text())["miou"] for path in sorted((work / "miou").glob("*.json"))}
result = {"settings": settings, "miou": miou, "seconds": seconds, "total": total}
(work / "results.json").write_text(json.dumps(result, indent=2) + "\n")
print("\n" + (work / "table.txt").read_text(), end="")
print(f"   {total['wall'] / 60:.1f} minutes, {total['processor'] / 60:.1f} of one processor; {work / 'results.json'}")
PYTHON
