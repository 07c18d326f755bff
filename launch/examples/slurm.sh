#!/usr/bin/env bash
# A recipe under Slurm, from the project's directory on a shared file system:
#   sbatch launch/examples/slurm.sh math_1p5b run.root=/shared/runs data.files.sft_train=...
#   sbatch --nodes=2 launch/examples/slurm.sh math_1p5b rl.processes=16 cache.workers=16 run.root=/shared/runs ...
# A preempted job is queued again and continues; two minutes before the end every stage is asked to stop.
#SBATCH --job-name=sft-then-rl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="${hosts[0]}:$port"
# Ray's token, made once for all jobs of this user and readable for nobody else; every node finds it in the home.
[[ -s "$HOME/.ray/auth_token" ]] || (umask 077 && ray get-auth-token --generate > /dev/null)
export RAY_AUTH_MODE=token

# What `scancel` sends to every process must not end Ray before the stages: the driver stops them.
start=(env --block-signal=TERM -u RAY_ADDRESS ray start ${SLURM_GPUS_ON_NODE:+--num-gpus="$SLURM_GPUS_ON_NODE"} --block)
srun --overlap --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" \
    "${start[@]}" --head --port="$port" --include-dashboard=false &
for host in "${hosts[@]:1}"; do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$host" "${start[@]}" --address="$RAY_ADDRESS" &
done
for ((waited = 0; ; waited += 5)); do
    if python -c "import ray; ray.init(log_to_driver=False); assert sum(n['Alive'] for n in ray.nodes()) == ${#hosts[@]}" 2> /dev/null; then
        break
    elif ((waited >= 600)); then
        echo "slurm.sh: Ray did not start on ${#hosts[@]} nodes in ten minutes; see the output of srun above" >&2
        exit 1
    fi
    sleep 5
done

# The recipe's cluster is what Slurm gave, unless the command says otherwise.
for setting in "platform.nodes=${#hosts[@]}" ${SLURM_GPUS_ON_NODE:+"platform.gpus_per_node=$SLURM_GPUS_ON_NODE"}; do
    [[ " $* " == *" ${setting%%=*}="* ]] || set -- "$@" "$setting"
done
python -m launch run "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM
wait "$driver" && code=0 || code=$?
while kill -0 "$driver" 2> /dev/null; do # the trap ended the wait: let the stages stop
    wait "$driver" && code=0 || code=$?
done
exit "$code"
