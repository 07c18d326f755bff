#!/usr/bin/env bash
# Two nodes of eight devices under Slurm, from the project's directory on a shared file system:
#   sbatch launch/examples/slurm.sh math_1p5b run.root=/shared/runs platform.nodes=2 data.files.sft_train=...
# A preempted job is queued again and continues; two minutes before the end every stage is asked to stop.
#SBATCH --job-name=sft-then-rl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="${hosts[0]}:$port"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"
[[ -s "$RAY_AUTH_TOKEN_PATH" ]] || ray get-auth-token --generate > /dev/null

srun --overlap --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" \
    env -u RAY_ADDRESS ray start --head --port="$port" --include-dashboard=false --block &
for host in "${hosts[@]:1}"; do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$host" \
        env -u RAY_ADDRESS ray start --address="$RAY_ADDRESS" --block &
done
until python -c "import ray; ray.init(log_to_driver=False); assert sum(n['Alive'] for n in ray.nodes()) == ${#hosts[@]}" 2> /dev/null; do
    sleep 5
done

python -m launch run "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM
wait "$driver" && code=0 || code=$?
while kill -0 "$driver" 2> /dev/null; do # the trap ended the wait: let the stages stop
    wait "$driver" && code=0 || code=$?
done
exit "$code"
