#!/usr/bin/env bash
# From demonstrations to a report, with a question for each choice: ./demo_training.sh --help
set -euo pipefail

usage() {
  cat <<'END'
usage: ./demo_training.sh [DATASET [RUN]] [--yes] [--key value ...]

Checks a dataset, trains a policy on it, evaluates the policy and writes a report. Each choice is a question with its
default in brackets, which Enter accepts. The same command resumes an interrupted run.

  DATASET          the demonstrations; without it, demonstrations are recorded in the simulation, and the policy is
                   rolled out there after the training
  RUN              the run directory (default: runs/ and the dataset's name)
  --yes, -y        accept all defaults without questions; also the behaviour without a terminal
  --config YAML    the base settings (default: configs/policy_act.yaml with a CUDA GPU; configs/demo.yaml
                   without one and for recorded demonstrations, since it needs no pretrained weights)
  --episodes N     demonstrations to record (default: 50)
  --rollouts N     rollouts after the training on recorded demonstrations (default: 100)
  --key value      any setting of the training (`bimact train --help` lists them), such as --num_steps 2000,
                   --batch_size 4, --device cuda:1, --wandb_project P; given settings are not asked for
  --help, -h       this text

Environment variables are passed to the training: CUDA_VISIBLE_DEVICES=1 ./demo_training.sh ...
Exit status: 0 done, 2 wrong input such as a dataset with faults, else that of the step that failed.
END
}

fail() {
  echo "demo_training.sh: $*" >&2
  exit 2
}

step() { printf '\n── %s\n' "$*"; }

# Paths given by the user are relative to the working directory; those of the project are prefixed by $root elsewhere.
root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/
home=$root
if [[ $PWD -ef $root ]]; then root=; fi

# ── Arguments ───────────────────────────────────────────────────────────────────────────────────────────────────────

declare -A given=() # by name, for `ask`
settings=()         # for the training, as given
places=(dataset_dir output_dir)
yes=
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    -y | --yes) yes=1 ;;
    --*)
      words=("$1") name=${1#--} value=true
      if [[ $name == *=* ]]; then
        value=${name#*=} name=${name%%=*}
      elif (($# > 1)) && [[ $2 != --* ]]; then
        value=$2 words+=("$2")
        shift
      fi
      case $name in
        config | dataset_dir | output_dir) value=${value/#\~\//$HOME/} ;;
      esac
      given[$name]=$value
      case $name in
        config | dataset_dir | output_dir | episodes | rollouts) ;;
        *) settings+=("${words[@]}") ;;
      esac
      ;;
    *)
      ((${#places[@]})) || fail "'$1' is one word too many: DATASET and RUN come first, then --key value"
      given[${places[0]}]=$1
      places=("${places[@]:1}")
      ;;
  esac
  shift
done

if [[ -z $yes && ! -t 0 ]]; then
  yes=1
  echo "No terminal is there to answer questions: all defaults are taken, as with --yes."
fi

if ! command -v bimact >/dev/null && [[ -x ${home}.venv/bin/bimact ]]; then
  PATH=${home}.venv/bin:$PATH
fi
command -v bimact >/dev/null || fail "bimact is not installed: run \`make setup\` in $home, or activate its environment"

# ── Questions ───────────────────────────────────────────────────────────────────────────────────────────────────────

# ask NAME QUESTION DEFAULT [PATTERN]: sets the variable NAME to the given value, the answer, or the default.
ask() {
  local answer=
  if [[ -v given[$1] ]]; then
    answer=${given[$1]}
  elif [[ -z $yes ]]; then
    while read -e -r -p "$2 [$3]: " answer || fail "stopped, since no answer came"; do
      answer=${answer/#\~\//$HOME/}
      [[ ! ${answer:-$3} =~ ${4:-} ]] || break
      echo "  '$answer' is not valid here."
    done
  fi
  printf -v "$1" '%s' "${answer:-$3}"
}

has_cuda() { python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }

# Length, batch size, device and W&B project of a config, one per line.
values_in() {
  python - "$1" <<'END'
import sys

from bimact.config import load_config
from bimact.errors import UserError

try:
    config = load_config(sys.argv[1])
except UserError as error:
    print(f"demo_training.sh: {error}", file=sys.stderr)
    sys.exit(2)
print(f"{config.num_steps} steps" if config.num_steps else f"{config.num_epochs} epochs")
print(config.batch_size, config.device, config.wandb_project or "none", sep="\n")
END
}

# ask_setting NAME QUESTION DEFAULT [PATTERN]: an answer that differs from the config becomes a setting.
ask_setting() {
  [[ ! -v given[$1] ]] || return 0
  local "$1"
  ask "$@"
  if [[ ${!1} != "$3" ]]; then settings+=("--$1" "${!1}"); fi
}

ask_length() {
  [[ ! -v given[num_steps] && ! -v given[num_epochs] ]] || return 0
  local length
  ask length "Length, in epochs or steps" "$1" '^[1-9][0-9]* (epochs|steps)$'
  case $length in
    "$1") ;;
    *steps) settings+=(--num_steps "${length% *}") ;;
    *) settings+=(--num_epochs "${length% *}" --num_steps null) ;;
  esac
}

ask_settings() {
  local values
  values=$(values_in "$config")
  mapfile -t values <<<"$values"
  ask_length "${values[0]}"
  ask_setting batch_size "Batch size" "${values[1]}" '^[1-9][0-9]*$'
  ask_setting device "Device: cuda, cuda:1, mps, cpu or auto" "${values[2]}" '^(cuda(:[0-9]+)?|mps|cpu|auto)$'
  ask_setting wandb_project "Weights & Biases project" "${values[3]}"
}

ask dataset_dir "Dataset, or record to make one in the simulation" "${ACT_DATASET_DIR:-record}"
rollouts=0
if [[ $dataset_dir == record ]]; then
  ask episodes "Demonstrations to record" 50 '^[1-9][0-9]*$'
  ask rollouts "Rollouts in the simulation after the training" 100 '^[0-9]+$'
  dataset_dir=${root}data/transfer_cube-$episodes
fi
ask output_dir "Run folder" "${root}runs/$(basename -- "$dataset_dir")"

last=$output_dir/checkpoint/act-train-last.pth
if [[ -e $last ]]; then
  echo "Going on with the run in $output_dir, with the settings that it has."
  settings+=(--resume_from "$last")
  if [[ -v given[config] ]]; then settings+=(--config "${given[config]}"); fi
else
  usual=${root}configs/policy_act.yaml
  if [[ ! -v given[config] ]]; then
    if [[ -v episodes ]] || ! has_cuda; then usual=${root}configs/demo.yaml; fi
    [[ -n $yes ]] || echo "configs/policy_act.yaml needs a GPU and pretrained weights, configs/demo.yaml neither."
  fi
  ask config "Config" "$usual"
  if [[ $config == "${root}configs/demo.yaml" && ! -v episodes && ! -v given[config] && ! -v given[encoder.crop] ]]; then
    echo "The crop of configs/demo.yaml is made for the simulation: images are not cropped here."
    settings+=(--encoder.crop null)
  fi
  if [[ -z $yes ]]; then ask_settings; fi
  settings+=(--config "$config")
fi

# ── Work ────────────────────────────────────────────────────────────────────────────────────────────────────────────

if [[ -v episodes ]]; then
  step "Record $episodes demonstrations of transfer_cube in $dataset_dir"
  bimact record --task transfer_cube --episodes "$episodes" --output_dir "$dataset_dir"
fi

step "Check $dataset_dir"
bimact check "$dataset_dir" --fail_on error

step "Train in $output_dir"
python "${root}scripts/train_act.py" --dataset_dir "$dataset_dir" --output_dir "$output_dir" "${settings[@]}"

step "Evaluate"
bimact evaluate --run "$output_dir"
if ((rollouts)); then
  bimact evaluate --run "$output_dir" --checkpoint last --task transfer_cube --rollouts "$rollouts" --seed 1000 --video 5
fi

step "Report"
bimact report --run "$output_dir"
page=$output_dir/report.html
if [[ -t 1 && $OSTYPE == darwin* ]]; then
  open "$page"
elif [[ -t 1 && -n ${DISPLAY:-}${WAYLAND_DISPLAY:-} ]] && command -v xdg-open >/dev/null; then
  (trap '' HUP; xdg-open "$page" &>/dev/null &) # outlives this terminal
fi
printf '\nThe report: %s\nIn all: %d min %02d s.\n' "$page" $((SECONDS / 60)) $((SECONDS % 60))
