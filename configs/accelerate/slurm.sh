#!/usr/bin/env bash
# Several nodes under Slurm, with eight GPUs each: sbatch --nodes 2 configs/accelerate/slurm.sh CONFIG [section.key=value ...]
# Run it from the clone. training.output_dir must lie on a file system that all nodes share.
#SBATCH --job-name=teacher-forcing
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
# Slurm sends SIGTERM two minutes before the time is up; the run then stops and saves, and the same command goes on.
set -euo pipefail

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MAIN_ADDRESS="${nodes[0]}" GPUS="${SLURM_GPUS_ON_NODE:-8}"
# `$SLURM_NODEID` is another on each node, so srun's own shell reads it.
srun --kill-on-bad-exit=1 bash -c '
  exec accelerate launch --config_file configs/accelerate/two_machines.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_ADDRESS" --main_process_port 29500 --rdzv_backend c10d \
    -m pipeline.cli train "$@"' train "$@"
