"""verl's own GRPO trainer on CPU through the plug-in: rollout and actor must agree after every weight sync."""

import json
import subprocess
import sys
import tempfile
import uuid

import pytest

STEPS = 3
REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    return sum(c.isdigit() for c in solution_str) / max(1, len(solution_str))
"""


def _write_prompts(path):
    import pandas

    rows = [
        {
            "data_source": "sum",
            "prompt": [{"role": "user", "content": f"{i % 10}+{i // 10}="}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i % 10 + i // 10)},
            "extra_info": {"index": i, "split": "train", "id": str(i)},
        }
        for i in range(16)
    ]
    pandas.DataFrame(rows).to_parquet(path)


def _overrides(model, data, reward, output, run):
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    fp32 = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"
    return [
        f"hydra.run.dir={output}/hydra",
        "algorithm.adv_estimator=grpo",
        f"data.train_files={data}",
        f"data.val_files={data}",
        "data.train_batch_size=8",
        "data.max_prompt_length=64",
        "data.max_response_length=16",
        "data.dataloader_num_workers=0",
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.model.external_lib=verl_cpu.engine",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        f"{actor}.strategy=fsdp2",
        # large enough that stale rollout weights are seen after one step
        f"{actor}.optim.lr=1e-2",
        f"{actor}.ppo_mini_batch_size=8",
        f"{actor}.ppo_micro_batch_size_per_gpu=32",
        f"{actor}.use_torch_compile=False",
        f"{actor}.fsdp_config.use_torch_compile=False",
        f"{actor}.fsdp_config.dtype=float32",
        f"+{actor}.fsdp_config.mixed_precision={fp32}",
        # a reference model, so that the forward-only engine is exercised too
        f"{actor}.use_kl_loss=True",
        "actor_rollout_ref.ref.strategy=fsdp2",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=32",
        f"+actor_rollout_ref.ref.fsdp_config.mixed_precision={fp32}",
        "actor_rollout_ref.ref.fsdp_config.use_torch_compile=False",
        "actor_rollout_ref.ref.fsdp_config.dtype=float32",
        f"{rollout}.name=vllm",
        f"{rollout}.dtype=float32",
        f"{rollout}.n=4",
        f"{rollout}.calculate_log_probs=True",
        f"{rollout}.tensor_model_parallel_size=1",
        f"{rollout}.enforce_eager=True",
        f"{rollout}.max_model_len=128",
        f"{rollout}.max_num_seqs=32",
        f"{rollout}.log_prob_micro_batch_size_per_gpu=32",
        f"{rollout}.free_cache_engine=False",
        f"+{rollout}.enable_sleep_mode=False",
        f"+{rollout}.engine_kwargs.vllm.worker_extension_cls=verl_cpu.vllm_extension.CPUColocateWorkerExtension",
        # one process fewer; the variable VLLM_ENABLE_V1_MULTIPROCESSING=0 allows it
        f"+{rollout}.engine_kwargs.vllm.distributed_executor_backend=uni",
        f"+{rollout}.engine_kwargs.vllm.num_gpu_blocks_override=64",
        f"{rollout}.agent.num_workers=1",
        # several buckets per sync
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes=1",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "reward.num_workers=1",
        f"reward.custom_reward_function.path={reward}",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=1",
        "trainer.nnodes=1",
        "trainer.logger=[file]",
        "trainer.project_name=verl_cpu",
        f"trainer.experiment_name={run}",
        f"trainer.default_local_dir={output}/checkpoints",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        f"trainer.total_training_steps={STEPS}",
        "trainer.total_epochs=10",
        "ray_kwargs.ray_init.num_cpus=16",
        "+ray_kwargs.ray_init.num_gpus=1",
        "+ray_kwargs.ray_init.address=local",
        "+ray_kwargs.ray_init.include_dashboard=False",
        "+ray_kwargs.ray_init.object_store_memory=200000000",
    ]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("qwen3", False)])
def test_rollout_equals_actor_after_every_weight_sync(architecture, tied, tiny_model, cpu_environment, tmp_path):
    data, reward, metrics = tmp_path / "train.parquet", tmp_path / "reward.py", tmp_path / "metrics.jsonl"
    _write_prompts(data)
    reward.write_text(REWARD)
    model = tiny_model(architecture, tied)
    run = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="ray_", dir="/tmp") as ray_directory:  # short: socket paths have a limit
        finished = subprocess.run(
            [sys.executable, "-m", "verl.trainer.main_ppo", *_overrides(model, data, reward, tmp_path, run)],
            env={**cpu_environment, "RAY_TMPDIR": ray_directory, "VERL_FILE_LOGGER_PATH": str(metrics)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=540,
        )
    assert finished.returncode == 0, finished.stdout[-8000:]
    rows = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    steps = [row for row in rows if "training/rollout_probs_diff_max" in row]
    assert len(steps) == STEPS
    assert all(row["actor/grad_norm"] > 0 for row in steps)
    for row in steps:
        assert row["training/rollout_probs_diff_max"] < 1e-5
        assert row["training/rollout_actor_probs_pearson_corr"] > 0.999
