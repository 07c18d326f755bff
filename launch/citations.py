"""What a model that was made here cites: the papers of its objective, recipe and RL algorithm, and the trainer."""

from __future__ import annotations

# Of the papers whose recipes ship with the package, by folder.
PAPERS = {
    "lp_sft": (
        "LP-SFT: Local-Preserving Supervised Fine-Tuning via Multimodal Entropy Structure",
        "Yueyang Wang and Baolong Bi and Shuo Lu and Jingyuan Zhang",
    ),
    "sed_sft": (
        "SED-SFT: Selectively Encouraging Diversity in Supervised Fine-Tuning",
        "Yijie Chen and Yijin Liu and Fandong Meng",
    ),
    "prift": (
        "PriFT: Prior-Support Guided Supervised Fine-Tuning",
        "Ke Wang and Shuangqi Li and Mathieu Salzmann and Pascal Frossard",
    ),
    "target_sft": (
        "A Unifying Lens on Supervised Fine-Tuning Through Target Distribution Design",
        "Tong Xie and Yuanhao Ban and Yunqi Hong and Sohyun An and Yihang Chen and Cho-Jui Hsieh",
    ),
    "talr": (
        "SFT Doesn't Always Hurt General Capabilities: Revisiting Domain-Specific Fine-Tuning in LLMs",
        "Jiacheng Lin and Zhongruo Wang and others",
    ),
}
# Of the objectives that one of them proposes.
OBJECTIVES = {
    "lp_sft": "lp_sft",
    "sed_sft": "sed_sft",
    "prift_prob": "prift",
    "prift_mass": "prift",
    "target_sft": "target_sft",
    "q_target": "target_sft",
    "talr": "talr",
}
# Numbers of arXiv.
ALGORITHMS = {
    "grpo": ("DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", "2402.03300"),
    "dapo": ("DAPO: An Open-Source LLM Reinforcement Learning System at Scale", "2503.14476"),
}
TRAINER = ("HybridFlow: A Flexible and Efficient RLHF Framework", "2409.19256")  # verl


def citations(recipe: str, objective: str, algorithm: str | None) -> str:
    """BibTeX entries of what a model was made by.

    Args:
        recipe: its name, whose first part may be a paper's folder.
        objective: of SFT, without the path of one's own; "" where there was none.
        algorithm: of RL; None where there was none.
    """
    wanted = [recipe.partition("/")[0], OBJECTIVES.get(objective.removesuffix("_repo"), "")]
    entries = [
        _entry(name, PAPERS[name][0], author=PAPERS[name][1]) for name in dict.fromkeys(wanted) if name in PAPERS
    ]
    if algorithm in ALGORITHMS:
        title, number = ALGORITHMS[algorithm]
        entries.append(_entry(algorithm, title, eprint=number, archivePrefix="arXiv"))
    title, number = TRAINER
    return "\n".join([*entries, _entry("verl", title, eprint=number, archivePrefix="arXiv")])


def _entry(key: str, title: str, **fields: str) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in {"title": f"{{{title}}}", **fields}.items()]
    return "\n".join([f"@misc{{{key},", *lines, "}"])
