"""The translation of `rl` into verl's configuration."""

import pytest
from omegaconf import OmegaConf

from common.errors import ConfigError
from rl_stage.config import verl_config

GROUPS = ["grpo", "dapo", "sed_sft", "prift"]


def chosen(config, *names: str) -> list:
    return [OmegaConf.select(config, name) for name in names]


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_becomes_a_valid_configuration_of_verl(group, gpu_settings, inputs, tmp_path):
    settings = gpu_settings(group)
    config = verl_config(settings, inputs, tmp_path)
    assert chosen(
        config,
        "data.train_batch_size",
        "actor_rollout_ref.rollout.n",
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        "actor_rollout_ref.actor.optim.lr",
        "trainer.total_training_steps",
        "trainer.n_gpus_per_node",
        "algorithm.adv_estimator",
        "actor_rollout_ref.model.use_remove_padding",
    ) == [
        settings.rl.prompts,
        settings.rl.samples,
        settings.rl.mini_batch,
        settings.rl.lr,
        settings.rl.steps,
        8,
        "grpo",
        True,
    ]


def test_prift_has_the_numbers_of_its_appendix(gpu_settings, inputs, tmp_path):
    config = verl_config(gpu_settings("prift"), inputs, tmp_path)
    actor = config.actor_rollout_ref.actor
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size, actor.ppo_epochs) == (128, 32, 1)
    assert (actor.optim.lr, actor.optim.lr_warmup_steps, actor.optim.weight_decay) == (1e-6, 10, 0.1)
    assert (actor.optim.clip_grad, actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (
        1.0,
        0.2,
        0.28,
        10.0,
    )
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.loss_agg_mode) == (True, 0.01, "token-mean")
    assert (config.actor_rollout_ref.rollout.n, config.actor_rollout_ref.rollout.temperature) == (32, 1.0)
    assert (config.trainer.total_training_steps, config.algorithm.filter_groups.enable) == (100, True)
    reward = config.reward.custom_reward_function.reward_kwargs
    assert (reward.correct, reward.wrong, reward.reward) == (1.0, -1.0, "boxed")
    assert (config.actor_rollout_ref.rollout.top_p, actor.kl_loss_type) == (1.0, "low_var_kl")
    assert config.reward.reward_manager.name == "dapo"
    assert config.reward.reward_kwargs.max_resp_len == 3072
    overlong = config.reward.reward_kwargs.overlong_buffer_cfg
    assert (overlong.enable, overlong.len, overlong.penalty_factor) == (True, 512, 1.0)


def test_sed_sft_samples_its_filter_with_the_named_instruct_model(gpu_settings, inputs, tmp_path):
    settings = gpu_settings("sed_sft")
    config = verl_config(settings, inputs, tmp_path)
    assert (config.data.train_batch_size, config.algorithm.filter_groups.enable) == (256, False)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    # What "the default GRPO configuration" is taken to be: verl's published example.
    assert (actor.optim.lr, actor.ppo_mini_batch_size, rollout.n, rollout.temperature) == (1e-6, 256, 5, 1.0)
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.kl_loss_type) == (True, 0.001, "low_var_kl")
    assert (config.data.max_prompt_length, config.data.max_response_length) == (512, 1024)
    assert config.reward.reward_manager.name == "naive"
    filter_ = settings.rl.filter
    assert (filter_.enabled, filter_.model, filter_.samples) == (True, "Qwen/Qwen2.5-Math-7B-Instruct", 8)
    assert (filter_.above, filter_.below) == (0.0, 1.0)


def test_no_reference_model_without_a_kl_term(cpu_settings, inputs, tmp_path):
    from verl.trainer.ppo.utils import need_reference_policy

    assert not need_reference_policy(verl_config(cpu_settings(kl_weight=0.0), inputs, tmp_path))
    assert need_reference_policy(verl_config(cpu_settings(kl_weight=0.01), inputs, tmp_path))


def test_the_cpu_platform_differs_only_in_how_not_in_what(cpu_settings, gpu_settings, inputs, tmp_path):
    on_cpu = verl_config(cpu_settings(), inputs, tmp_path)
    assert chosen(on_cpu, "trainer.device", "actor_rollout_ref.rollout.free_cache_engine") == ["cpu", False]
    assert on_cpu.actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype == "fp32"
    on_gpu = verl_config(gpu_settings("grpo"), inputs, tmp_path)
    assert on_gpu.actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype == "bf16"
    for key in (
        "algorithm.adv_estimator",
        "actor_rollout_ref.actor.ppo_epochs",
        "actor_rollout_ref.actor.clip_ratio_c",
    ):
        assert OmegaConf.select(on_cpu, key) == OmegaConf.select(on_gpu, key)


def test_passthrough_wins_over_our_own_values(cpu_settings, inputs, tmp_path):
    tree = {
        "actor_rollout_ref": {"actor": {"ppo_epochs": 3}, "rollout": {"engine_kwargs": {"vllm": {"block_size": 64}}}}
    }
    config = verl_config(cpu_settings(verl=tree), inputs, tmp_path)
    assert config.actor_rollout_ref.actor.ppo_epochs == 3
    assert config.actor_rollout_ref.rollout.engine_kwargs.vllm.block_size == 64
    assert "worker_extension_cls" in config.actor_rollout_ref.rollout.engine_kwargs.vllm


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"actor_rollout_ref": {"actor": {"clip_ratio_hihg": 0.3}}}, r"rl\.verl\..*clip_ratio_hihg.*clip_ratio_high"),
        ({"traner": {"save_freq": 1}}, r"rl\.verl\.traner\.save_freq.*trainer"),
        ({"data": {"max_prompt_length": {"deeper": 1}}}, r"rl\.verl\.data\.max_prompt_length\.deeper.*not a section"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_an_error_that_names_it(tree, said, cpu_settings, inputs, tmp_path):
    with pytest.raises(ConfigError, match=said):
        verl_config(cpu_settings(verl=tree), inputs, tmp_path)


def test_a_value_that_verl_refuses_is_our_error(cpu_settings, inputs, tmp_path):
    with pytest.raises(ConfigError, match="rl: verl refuses"):
        verl_config(cpu_settings(verl={"actor_rollout_ref": {"actor": {"loss_agg_mode": "median"}}}), inputs, tmp_path)


def test_the_lengths_that_verl_uses_are_ours(cpu_settings, inputs, tmp_path):
    config = verl_config(cpu_settings(max_prompt_length=40, max_response_length=24), inputs, tmp_path)
    OmegaConf.resolve(config)
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.prompt_length, rollout.response_length, rollout.max_model_len) == (40, 24, 64)


def test_verl_reads_the_recipes_template(cpu_settings, inputs, recipe_template, tmp_path):
    settings = cpu_settings(model={"chat_template": str(recipe_template)})
    model = verl_config(settings, inputs, tmp_path).actor_rollout_ref.model
    assert model.custom_chat_template == recipe_template.read_text()
    assert verl_config(cpu_settings(), inputs, tmp_path).actor_rollout_ref.model.custom_chat_template is None
