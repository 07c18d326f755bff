"""What the trainer does not support is refused in one line when a run is planned, and nothing else is."""

import json

import pytest

from launch.stages.sft import Sft
from sft_objectives.trainer.config import verl_config
from sft_objectives.trainer.supported import check_model, check_settings

QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 100}


def directory(path, **config):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**QWEN, **config}))
    return path


@pytest.mark.parametrize(
    ("verl", "message"),
    [
        (
            {"engine": {"strategy": "fsdp"}},
            r"engine\.strategy='fsdp' is not supported; allowed: fsdp2; .*not FSDP1",
        ),
        ({"engine.strategy": "megatron"}, r"engine\.strategy='megatron' is not supported"),
        ({"engine": "megatron"}, r"engine='megatron' replaces a section .* only verl's FSDP2 engine"),
        ({"model": {"use_fused_kernels": True}}, r"model\.use_fused_kernels=True is not supported.*sft\.fused=auto"),
        ({"engine.context_parallel_size": 2}, r"context_parallel_size=2 is not supported.*set sft\.sequence_parallel"),
        ({"engine.tensor_model_parallel_size": 2}, r"tensor parallelism is Megatron's"),
        ({"engine.ulysses_sequence_parallel_size": 2}, r"allowed: nothing, remove it; set sft\.sequence_parallel"),
        ({"engine.pad_to_length": True}, r"engine\.pad_to_length=True is not supported"),
        ({"engine.mixed_precision.param_dtype": "fp16"}, r"param_dtype='fp16' is not supported; .*model\.dtype"),
        ({"model.override_config": {"output_router_logits": True}}, r"ignored; set sft\.router_aux_loss"),
    ],
)
def test_settings_of_verl_that_the_trainer_cannot_honour(verl, message, settings_of, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        check_settings(Sft(verl=verl))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):  # the recipe itself is refused, before anything is planned
        settings_of(sft__verl=verl)


def test_other_settings_of_verl_pass():
    check_settings(Sft())
    check_settings(Sft(verl={"engine": {"strategy": "fsdp2", "fsdp_size": 2}, "model.use_fused_kernels": False}))


@pytest.mark.parametrize(
    ("config", "sft", "message"),
    [
        (
            {"model_type": "qwen2_5_vl", "vision_config": {"depth": 2}},
            {},
            r"qwen2_5_vl has a vision_config, .*gemma3",
        ),
        ({"model_type": "qwen2_audio", "audio_config": {"d": 2}}, {}, r"qwen2_audio has a audio_config"),
        (
            {"model_type": "gemma3", "vision_config": {"d": 1}, "text_config": {}},
            {"processes": 2, "sequence_parallel": 2},
            r"gemma3 has a vision_config; sft\.sequence_parallel=2",
        ),
        ({"model_type": "mamba2"}, {}, r"mamba2 carries a state from token to token .* set sft\.packed=false"),
        ({"model_type": "jamba", "mamba_d_state": 16}, {}, r"\(mamba_d_state\).*sft\.packed=false"),
        (
            {"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]},
            {},
            r"\(layer_types: linear_attention\)",
        ),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, {}, r"\(layer_types: conv\)"),
        ({}, {"router_aux_loss": 0.001}, r"sft\.router_aux_loss=0\.001: .*qwen2\) has no experts; allowed for it: 0"),
        (
            {"model_type": "musicgen", "architectures": ["MusicgenForCausalLM"]},
            {},
            r"MusicgenForCausalLM\.forward calls no output head as a module .*set sft\.fused=off",
        ),
    ],
)
def test_models_that_are_not_supported(config, sft, message, tmp_path):
    path = directory(tmp_path / "model", **config)
    with pytest.raises(ValueError, match=message) as caught:
        check_model(path, Sft(**sft))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "sft"),
    [
        ({}, {}),
        ({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}, {}),
        # text alone: the tower gets no gradient and is exported as it was
        (
            {
                "model_type": "gemma3",
                "architectures": ["Gemma3ForConditionalGeneration"],
                "vision_config": {"d": 1},
                "text_config": {"layer_types": ["sliding_attention", "full_attention"]},
            },
            {},
        ),
        ({"model_type": "mamba2"}, {"packed": False}),
        ({"model_type": "granitemoehybrid", "layer_types": ["attention"], "mamba_d_state": 8}, {}),
        (
            {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8},
            {"router_aux_loss": 1},
        ),
        ({"model_type": "musicgen", "architectures": ["MusicgenForCausalLM"]}, {"fused": "off"}),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, {}),
        ({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}, {}),
        ({"model_type": "unheard_of", "architectures": ["UnheardOf"]}, {}),
    ],
)
def test_models_that_are(config, sft, tmp_path):
    check_model(directory(tmp_path / "model", **config), Sft(**sft))
    check_model(tmp_path / "nowhere", Sft(**sft))


def test_a_model_s_own_code_is_read_not_run(tmp_path):
    own = {"architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    path = directory(tmp_path / "model", model_type="own", **own)
    head = "raise SystemExit\nclass Own:\n    def __init__(self):\n        self.body = OwnModel()\n        {made}\n"
    forward = "    def forward(self, x):\n        return {logits}\n"
    called = head.format(made="self.out = nn.Linear(2, 3)") + forward.format(logits="self.out(self.body(x))")
    (path / "modeling_own.py").write_text(called)
    check_model(path, Sft())
    shared = head.format(made="pass") + forward.format(logits="F.linear(self.body(x), self.body.embed.weight)")
    (path / "modeling_own.py").write_text(shared)
    with pytest.raises(ValueError, match=r"Own\.forward calls no output head as a module \(it calls body\)"):
        check_model(path, Sft())


def test_the_dry_run_checks_the_model_too(settings_of, tmp_path):
    path = directory(tmp_path / "model", model_type="mamba2")
    with pytest.raises(ValueError, match=r"mamba2 carries a state"):
        verl_config(settings_of(), {"model": path, "data": tmp_path}, tmp_path)


def planned(tmp_path, *, tokens=("a", "b"), **config):
    """A plan of PriFT's Table 7: a student of 151,936 ids, a teacher of 152,064 whose tokenizer has `tokens`."""
    from launch.graph.builder import make_plan

    for name, width, vocab, changes in (("student", 151_936, ("a", "b"), config), ("teacher", 152_064, tokens, {})):
        path = directory(tmp_path / name, vocab_size=width, **changes)
        tokenizer = {"model": {"vocab": {token: index for index, token in enumerate(vocab)}}, "added_tokens": []}
        (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    overrides = [
        "objective=kd_decomposed", "model.pretrain=null", f"model.path={tmp_path / 'student'}",
        "model.teacher.pretrain=null", f"model.teacher.path={tmp_path / 'teacher'}", "rl.enabled=false",
    ]  # fmt: skip
    return make_plan("microworld", overrides)


def test_a_teacher_with_a_wider_padded_head_plans_and_another_vocabulary_does_not(tmp_path):
    stages = [stage for stage in planned(tmp_path).stages.values() if stage.kind == "sft"]
    assert len(stages) == 1 and "teacher" in stages[0].inputs
    with pytest.raises(ValueError, match=r"vocabulary differs from the student's in 2 ids .*the teacher must share"):
        planned(tmp_path, tokens=("b", "a"))


def test_the_plan_refuses_a_model_that_is_not_supported(tmp_path):
    with pytest.raises(ValueError, match=r"qwen2_5_vl has a vision_config, towers of other modalities"):
        planned(tmp_path, model_type="qwen2_5_vl", vision_config={"depth": 2})
