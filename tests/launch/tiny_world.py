"""Overrides that make prepare, pretrain and SFT of the micro-world a matter of seconds."""

TINY = [
    "data.microworld.pretrain_examples=1200", "data.microworld.sft_examples=64", "data.microworld.rl_prompts=32",
    "data.microworld.target_problems=12", "data.microworld.skill_problems=4", "model.pretrain.hidden=48",
    "model.pretrain.layers=2", "model.pretrain.heads=4", "model.pretrain.steps=10", "sft.steps=2",
    "sft.batch_size=16", "rl.enabled=false", "eval.enabled=false",
]  # fmt: skip
