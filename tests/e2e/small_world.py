"""Overrides that make the micro-world a matter of minutes."""

SMALL = [
    "data.microworld.pretrain_examples=1200",
    "data.microworld.sft_examples=96",
    "data.microworld.rl_prompts=32",
    "data.microworld.target_problems=12",
    "data.microworld.skill_problems=4",
    "model.pretrain.hidden=64",
    "model.pretrain.layers=2",
    "model.pretrain.heads=2",
    "model.pretrain.steps=40",
    "sft.steps=6",
    "sft.batch_size=16",
    "sft.save_every=2",
    "rl.steps=2",
    "rl.prompts=4",
    "rl.samples=4",
    "rl.mini_batch=4",
    "rl.probe.prompts=2",
    "rl.probe.samples=2",
    "run.backoff=0.5",
]
