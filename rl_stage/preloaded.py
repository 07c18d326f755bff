"""What the processes of an RL run import, for the server that forks them (`common.worker_forks`)."""

PRELOADED = (
    "ray._private.workers.default_worker",
    "transfer_queue",
    "verl.workers.engine_workers",
    "verl.trainer.ppo.v1",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "verl.workers.rollout.vllm_rollout.vllm_rollout",
    "verl_cpu.vllm_extension",
    "rl_stage.rewards",
    "rl_stage.renewable",
    "rl_stage.verl_plugins",  # last: it registers what is imported before it
)
