#!/bin/bash
# Trains a recipe on several machines of a Slurm cluster, and queues itself again until the run has finished.
#
#   sbatch examples/slurm/train.sh imagenet256-xl2 /shared/xl2 data.path=/shared/latents
#
# The arguments are those of `scaledit train`: the recipe, then the run folder, then overrides. The run folder must
# be on storage that all machines see, and scaledit must be on PATH on each of them (activate its environment below).
#
#SBATCH --job-name=scaledit
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=scaledit-%j.log
set -u

# source /shared/venv/bin/activate

if [ $# -lt 2 ]; then
  echo "usage: sbatch train.sh RECIPE RUN_FOLDER [section.key=value ...]" >&2
  exit 2
fi
recipe=$1 out=$2
shift 2

# The first machine of the job is where the ranks meet. Two jobs on one machine need different ports.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

# One task is one rank. A rank picks its GPU by LOCAL_RANK among those that it sees, so ask for --gpus-per-node, not
# for --gpus-per-task. `exec` makes the rank the process that Slurm signals.
srun --kill-on-bad-exit=0 bash -c '
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
  export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
  exec scaledit train "$@"' rank "$recipe" --out "$out" --resume auto "$@"
code=$?

# Two minutes before the time limit Slurm sends SIGUSR1 to every rank. The run finishes its step, saves a checkpoint
# and exits with 75: it goes back into the queue. Any other code ends the job.
if [ $code -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
