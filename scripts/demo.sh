#!/usr/bin/env bash
# The main job, end to end, with the ordinary commands: record, train, evaluate, report.
# Each step goes on where an earlier call stopped.
set -euo pipefail

task=${TASK:-transfer_cube}
seed=${SEED:-0}
name=demo-$task
episodes=50 rollouts=100 videos=5
settings=()
if [[ $task == insertion ]]; then
  settings+=(--num_steps 3000)  # a few millimetres decide whether the peg goes in
fi
if [[ -n ${QUICK:-} ]]; then
  name=$name-quick
  episodes=2 rollouts=2 videos=1
  settings+=(--num_steps 20 --val_split 0.5 --warmup_steps 5 --log_frequency 10)
  echo "QUICK=1 takes the same path with little data and training: it proves the plumbing, not the policy."
fi
if [[ $seed != 0 ]]; then
  name=$name-seed-$seed
fi
dataset=data/$task-$episodes run=runs/$name

minutes() { printf 'In all: %d min %02d s.\n' $((SECONDS / 60)) $((SECONDS % 60)); }
step() { printf '\n── %s\n' "$*"; }

step "1 of 4: record $episodes demonstrations of $task"
bimact record --task "$task" --episodes "$episodes" --output_dir "$dataset"

step "2 of 4: train"
if [[ -e $run/checkpoint/act-train-last.pth ]]; then
  settings+=(--resume_from "$run/checkpoint/act-train-last.pth")
fi
python scripts/train_act.py --config configs/demo.yaml --dataset_dir "$dataset" --output_dir "$run" --seed "$seed" "${settings[@]}"

step "3 of 4: evaluate: $rollouts rollouts from scenes that no demonstration has"
bimact evaluate --run "$run" --checkpoint last
bimact evaluate --run "$run" --checkpoint last --task "$task" --rollouts "$rollouts" --seed 1000 --video "$videos"

step "4 of 4: report"
bimact report --run "$run"
minutes
