#!/bin/bash
# Samples many images of one model as an array of jobs, each of which generates one share on one GPU.
#
#   sbatch --array=0-7 examples/slurm/generate.sh /shared/xl2 /shared/xl2.npz --num 50000 --cfg-scale 1.5
#
# The arguments are those of `scaledit generate`: the model, then the output, then options. The output must be on
# storage that all machines see. The job that finishes last joins the shares into the file. If a job fails or runs out
# of time, submit the same command again: it generates only what is missing.
#
#SBATCH --job-name=scaledit-generate
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=scaledit-generate-%A-%a.log
set -u

# source /shared/venv/bin/activate

if [ $# -lt 2 ]; then
  echo "usage: sbatch --array=0-N generate.sh MODEL OUT.npz [options of scaledit generate]" >&2
  exit 2
fi
model=$1 out=$2
shift 2

# The number of shares is that of the array, which must begin at 0. Without an array one job generates everything.
share=${SLURM_ARRAY_TASK_ID:-0}/${SLURM_ARRAY_TASK_COUNT:-1}
exec srun scaledit generate "$model" --out "$out" --shard "$share" "$@"
