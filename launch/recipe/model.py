"""The models of a recipe: the base, the ones that objectives read, and the micro-world's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from launch.recipe.section import Section, later, runtime, setting

Family = Literal["qwen2", "qwen2_math", "qwen3", "qwen3_moe", "llama2", "llama3", "gemma3", "deepseek"]


class Pretrain(Section):
    """A small model trained from nothing on the data set's `pretrain` part (micro-world only)."""

    architecture: Literal["qwen2", "qwen3"] = setting("qwen2", "the family whose layers it has")
    hidden: int = setting(192, "hidden size", gt=0)
    layers: int = setting(4, "transformer layers", gt=0)
    heads: int = setting(6, "attention heads; divides hidden", gt=0)
    tied: bool = setting(True, "share the embedding with the output head")
    steps: int = setting(600, "optimizer steps", gt=0)
    batch_size: int = setting(64, "sequences a step", gt=0)
    optimizer: Literal["adamw", "muon"] = later("adamw", "muon: for the layers' matrices, AdamW for the rest")
    lr: float = setting(2e-3, "peak learning rate", gt=0)
    weight_decay: float = setting(0.1, "of matrices only", ge=0)
    skills: list[str] = setting([], "which skills' text to train on; empty: all")
    seed: int = setting(0, "initial weights and batch order")

    @model_validator(mode="after")
    def _heads(self) -> Pretrain:
        if self.hidden % self.heads:
            raise ValueError(f"heads={self.heads} does not divide hidden={self.hidden}; change either")
        return self


class Shapes(Section):
    """Fields of a model's config.json by its names, from which `plan` counts parameters where no copy is at hand."""

    hidden_size: int = runtime(2048, "width of the hidden state", gt=0)
    intermediate_size: int = runtime(8192, "width of the feed-forward layer", gt=0)
    num_hidden_layers: int = runtime(24, "transformer layers", gt=0)
    num_attention_heads: int = runtime(16, "attention heads", gt=0)
    num_key_value_heads: int = runtime(16, "heads of keys and values", gt=0)
    head_dim: int = runtime(128, "width of a head", gt=0)
    vocab_size: int = runtime(32_000, "rows of the embedding", gt=0)
    tie_word_embeddings: bool = runtime(False, "the output head is the embedding")
    num_experts: int = runtime(1, "experts of a layer", gt=0)
    moe_intermediate_size: int | None = runtime(None, "width of one expert, of several", gt=0)


class ReferenceModel(Section):
    """A frozen model that an objective reads; it is made or fetched only when an objective asks."""

    path: str | None = setting(None, "Hugging Face name or directory")
    revision: str | None = setting(None, "commit of a Hugging Face name")
    pretrain: Pretrain | None = setting(None, "train it from nothing instead of reading `path`")


class Model(Section):
    path: str | None = setting(None, "Hugging Face name or directory of the base model")
    revision: str | None = setting(None, "commit of a Hugging Face name")
    pretrain: Pretrain | None = setting(None, "train the base from nothing instead of reading `path`")
    teacher: ReferenceModel = setting(ReferenceModel(), "source `teacher`: the model to learn from")
    checkpoint: ReferenceModel = setting(ReferenceModel(), "source `checkpoint`: a partly fine-tuned model")
    attention: Literal["sdpa", "varlen", "flash_attention_2", "eager"] = setting(
        "sdpa", "attention kernel; missing is an error"
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "weights and activations in training")
    chat_template: str | None = setting(
        None, "Jinja file that replaces the tokenizer's chat template, or one of recipes/templates by name"
    )
    template_arguments: dict[str, Any] = setting(
        {}, "variables of the chat template in every stage, e.g. {enable_thinking: false}"
    )
    eos: str | None = setting(None, "token that ends a turn, where the model's own files name another one")
    trust_remote_code: bool = setting(False, "run Python code that comes with the model")
    family: Family | None = runtime(None, "architecture; --scale tiny takes a small one of it with its chat template")
    shapes: Shapes | None = runtime(None, "its sizes, for what a plan costs")
