#!/usr/bin/env bash
# A table on a TPU slice of a GKE cluster, by xpk; IMAGE is a container image with this
# repository as its working directory:
#   IMAGE=... experiments/launch/xpk.sh CLUSTER NAME TPU_TYPE --config \
#       configs/vtab/vit_b16.py --workdir gs://BUCKET/vtab
# GKE sends SIGTERM before it takes a node: the job saves, ends with the status 75 and is
# started again. MODULE names another command.
set -euo pipefail

if [[ $# -lt 4 || -z ${IMAGE:-} ]]; then
  echo "usage: IMAGE=... $0 CLUSTER NAME TPU_TYPE FLAGS..." >&2
  exit 2
fi
cluster=$1 name=$2 type=$3
shift 3

printf -v command '%q ' python3 -u -m "${MODULE:-experiments.table}" "$@"
exec xpk workload create --cluster="$cluster" --workload="$name" \
  --tpu-type="$type" --num-slices=1 --docker-image="$IMAGE" \
  --max-restarts=100 --restart-on-exit-codes=75 \
  --termination-grace-period-seconds=120 --command="$command"
