#!/usr/bin/env bash
# A table on all hosts of a TPU VM, which has a clone of this repository in ~/peftjax:
#   experiments/launch/tpu_vm.sh TPU ZONE --config configs/vtab/vit_b16.py \
#       --workdir gs://BUCKET/vtab
# The hosts find each other and do every run together. With --per-device each host is a
# slice of its own, and each chip does runs of its own. MODULE names another command.
set -euo pipefail

if [[ $# -lt 3 ]]; then
  echo "usage: $0 TPU ZONE FLAGS..., the flags of ${MODULE:-experiments.table}" >&2
  exit 2
fi
tpu=$1 zone=$2
shift 2

alone=()
for flag in "$@"; do
  if [[ $flag == --per-device ]]; then
    alone=("TPU_PROCESS_BOUNDS=1,1,1" "TPU_HOST_BOUNDS=1,1,1")
  fi
done
printf -v command '%q ' env "${alone[@]}" python3 -u -m \
  "${MODULE:-experiments.table}" "$@"
exec gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all \
  --command="cd peftjax && $command"
