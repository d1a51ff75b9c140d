#!/usr/bin/env bash
# A table under Slurm; what follows are sbatch's flags, this script, the table's flags.
#
# Many workers of one table, each run done by one of them:
#   sbatch --array=0-3 --ntasks=1 experiments/launch/slurm.sh --config configs/vtab/vit_b16.py
# One job of 4 processes, which do every run together:
#   sbatch --nodes=4 --ntasks-per-node=1 experiments/launch/slurm.sh --config ...
#
# Before the time limit Slurm sends SIGTERM; the job saves, ends with the status 75 and
# is queued again. MODULE names another command, experiments.finetune for one.
#SBATCH --job-name=peftjax
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

status=0
srun --kill-on-bad-exit=1 \
  "${PYTHON:-python}" -u -m "${MODULE:-experiments.table}" "$@" || status=$?
if [[ $status -eq 75 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
