"""Stage `pretrain`: a small model trained from nothing on the micro-world's text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import ConfigError
from launch.recipe.model import Pretrain as PretrainSection
from launch.recipe.section import identity, setting
from launch.stages.contract import Branch, Cost, Counts, Made, Settings, StageKind, Step
from launch.stages.memory import Shape, shape_of
from launch.stages.references import sources

VOCABULARY, TOKENS = 128, 32  # of the micro-world: ids, and tokens of a text
# Head widths that vLLM's attention runs on a CPU.
VLLM_CPU_HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


class PretrainSettings(Settings):
    pretrain: PretrainSection = setting(PretrainSection(), "the model and its training")


class Pretrain(StageKind):
    name = "pretrain"
    version = 1
    function = "data_prep.micro_world.pretrain:run"
    after = ("prepare",)

    def check(self, recipe: Any) -> None:
        pretrain = recipe.model.pretrain
        if pretrain is None or recipe.platform.name != "cpu" or not (recipe.rl.enabled or recipe.eval.enabled):
            return
        width = pretrain.hidden / pretrain.heads
        if width not in VLLM_CPU_HEAD_WIDTHS:
            allowed = ", ".join(map(str, VLLM_CPU_HEAD_WIDTHS))
            raise ValueError(
                f"model.pretrain.heads={pretrain.heads}: {width:g} of model.pretrain.hidden={pretrain.hidden} each; "
                f"vLLM's attention on a CPU allows {allowed}; change either"
            )

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        for role in dict.fromkeys(("base", *sources(branch))):
            section = recipe.model.pretrain if role == "base" else getattr(recipe.model, role).pretrain
            if section is None:
                continue
            self._check_skills(role, section)
            yield Step(
                f"pretrain:{role}",
                role,
                PretrainSettings(pretrain=section, model=recipe.model, platform=recipe.platform),
                {
                    "pretrain": identity(section),
                    "threads": recipe.platform.threads,
                    **({} if recipe.platform.name == "cpu" else {"platform": recipe.platform.name}),
                },
                {"data": Made("prepare:pretrain")},
            )

    def _check_skills(self, role: str, section: PretrainSection) -> None:
        from data_prep.micro_world.world import SKILLS

        unknown = sorted(set(section.skills) - set(SKILLS))
        if unknown:
            raise ConfigError(
                f"{role} model: pretrain.skills: unknown {', '.join(unknown)}; allowed: {', '.join(SKILLS)}"
            )

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        pretrain = counts.settings["pretrain"]
        size = self.parameters(counts.settings)
        seen = pretrain["steps"] * pretrain["batch_size"] * TOKENS
        return Cost(6 * size * seen, 4 * size + 100_000, start_seconds=15.0)

    def shape(self, settings: Mapping[str, Any]) -> Shape:
        pretrain = settings["pretrain"]
        hidden = pretrain["hidden"]
        config = {
            "hidden_size": hidden,
            "intermediate_size": hidden * 8 // 3 // 32 * 32,
            "num_hidden_layers": pretrain["layers"],
            "num_attention_heads": pretrain["heads"],
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": pretrain["tied"],
        }
        return shape_of(config)

    def parameters(self, settings: Mapping[str, Any]) -> float:
        pretrain = settings["pretrain"]
        hidden = pretrain["hidden"]
        embeddings = VOCABULARY * hidden * (1 if pretrain["tied"] else 2)
        return float(pretrain["layers"] * 12 * hidden * hidden + embeddings)


PRETRAIN = Pretrain()
