#!/bin/bash
# Train on SLURM, with one launcher a node. Before the time limit, or when it is preempted, the job saves, queues again
# and continues the same run. Edit the #SBATCH lines for your cluster, and submit it in the folder of this repository
# with the words of `make train`:
#
#     sbatch scripts/slurm.sh MODEL=llamagen-xl HEAD=masc
#
#SBATCH --job-name=masc
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
# Seconds before the end. The launchers take 100 of them at most, and longer only for a checkpoint that is being written.
#SBATCH --signal=B:USR1@120

cd "${SLURM_SUBMIT_DIR:-.}" && [ -f scripts/slurm.sh ] || {
    echo "error: submit scripts/slurm.sh with sbatch in the folder of the repository, found $PWD" >&2
    exit 1
}

asked='' # whether SLURM has asked the job to stop
step=''  # the process of srun, which sends the signal to all processes of all nodes
trap 'asked=yes; if [ -n "$step" ]; then kill -USR1 "$step"; fi' USR1

make setup || exit # once, not on all nodes at the same time
# A node finds its own number in SLURM_NODEID. Jobs that share a node have ports of their own.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    --kill-on-bad-exit=0 --wait=0 \
    make train NODES="$SLURM_JOB_NUM_NODES" GPUS="${SLURM_GPUS_ON_NODE:-1}" \
    MAIN_HOST="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" \
    MAIN_PORT="$((20000 + SLURM_JOB_ID % 10000))" "$@" &
step=$!
if [ -n "$asked" ]; then kill -USR1 "$step"; fi # it came before srun was there

wait "$step"
status=$?
while kill -0 "$step" 2> /dev/null; do # the signal ended the wait
    wait "$step"
    status=$?
done
if [ -n "$asked" ] && [ "$status" -ne 0 ]; then
    echo "job $SLURM_JOB_ID queues again and will continue the run"
    scontrol requeue "$SLURM_JOB_ID"
    exit
fi
exit "$status"
