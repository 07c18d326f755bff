"""Memory of one device in a stage, part by part, from the shapes of its models: arithmetic, no guess from past runs.

Weights, gradients and the optimizer's moments are exact. Activations are what autograd keeps of a gated decoder block
(norms, projections, attention, feed-forward). A part is a number of bytes; what nothing here counts (the CUDA context,
buffers of collectives, fragments) is `REST`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 2**30
GB = 1e9  # the unit of platform.device_memory
FLOAT = 4  # bytes of a master weight, a gradient, a moment, a logit
WIDTH = {"float32": 4, "bfloat16": 2}
GPU_ROWS = 8192  # of a chunk: ROWS_OF_GPU of sft_objectives.fused.chunk_size
GPU_LOGIT = 32  # bytes that an H200 held for a logit in bfloat16: docs/gpu.md, item 5
REST = {"gpu": 1.5 * GIB, "cpu": 0.0}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. intermediate: feed-forward width that a token uses; query, key_value: width of all heads;
    layer: parameters of one; known: whether they come from its configuration, not from its size alone."""

    hidden: int
    layers: int
    intermediate: int
    query: int
    key_value: int
    vocabulary: int
    tied: bool
    layer: float
    known: bool = True

    @property
    def embeddings(self) -> float:
        return float(self.vocabulary * self.hidden * (1 if self.tied else 2))

    @property
    def parameters(self) -> float:
        return self.layers * self.layer + self.embeddings


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes: Llama, Qwen, Gemma, Mistral and their like, experts included."""
    config = config.get("text_config") or config
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    query, key_value = head * heads, head * (config.get("num_key_value_heads") or heads)
    experts = next((config[name] for name in _EXPERTS if config.get(name)), 0)
    dense = config.get("intermediate_size") or 4 * hidden
    wide = used = dense
    if experts:
        one = config.get("moe_intermediate_size") or dense
        shared = config.get("shared_expert_intermediate_size") or one * (config.get("n_shared_experts") or 0)
        wide, used = experts * one + shared, (config.get("num_experts_per_tok") or 1) * one + shared
    layer = 2 * hidden * (query + key_value) + 3 * hidden * wide + 2 * hidden + hidden * experts
    return Shape(
        hidden, config["num_hidden_layers"], used, query, key_value, config["vocab_size"],
        bool(config.get("tie_word_embeddings")), float(layer),
    )  # fmt: skip


def typical_shape(parameters: float) -> Shape:
    """A decoder of about so many parameters, for a model of which only the size is known."""
    vocabulary, tied = 151_936, parameters < 4e9

    def made(hidden: int) -> Shape:
        layers, wide, key_value = max(2, round(hidden / 80)), 4 * hidden, max(64, hidden // 4)
        layer = 2 * hidden * (hidden + key_value) + 3 * hidden * wide + 2 * hidden
        return Shape(hidden, layers, wide, hidden, key_value, vocabulary, tied, float(layer), known=False)

    shapes = [made(hidden) for hidden in range(64, 20_000, 64)]
    return min(shapes, key=lambda shape: abs(shape.parameters - parameters))


@dataclass(frozen=True)
class Memory:
    """Bytes of one device by what takes them, at the moment when they are most; `phase` names it."""

    parts: dict[str, float]
    phase: str = ""

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def text(self) -> str:
        """ "12.3 GiB (weights 5.8, optimizer 4.1, ...)", the largest first."""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])
        return f"{self.total / GIB:.1f} GiB (" + ", ".join(f"{k} {v / GIB:.1f}" for k, v in largest if v) + ")"


def most(*phases: Memory) -> Memory:
    return max(phases, key=lambda memory: memory.total)


def sampling(weights: float, share: float, platform: Mapping[str, Any]) -> Memory:
    """vLLM with these bytes of weights: on a GPU its cache fills up `share` of the device, on a CPU it is set."""
    if platform["name"] == "cpu":
        cache = float(platform["env"].get("VLLM_CPU_KVCACHE_SPACE", "4")) * GIB
        return Memory({"weights": weights, "KV cache": cache}, "sampling")
    rest = REST[platform["name"]]
    cache = share * platform["device_memory"] * GB - weights - rest
    return Memory({"weights": weights, "rest": rest, "KV cache": max(0.0, cache)}, "sampling")


def trained(shape: Shape, ranks: int, lora: Mapping[str, Any] | None) -> dict[str, float]:
    """Weights, gradients and AdamW's two moments of one of the ranks that they are sharded over, in float32."""
    size = shape.parameters if lora is None else lora_parameters(shape, lora["rank"])
    frozen = 0.0 if lora is None else size
    return {
        "weights": FLOAT * (shape.parameters + frozen) / ranks,
        "gradients": FLOAT * size / ranks,
        "optimizer": 2 * FLOAT * size / ranks,
    }


def lora_parameters(shape: Shape, rank: int) -> float:
    """Parameters of a low-rank update of every linear layer but the head."""
    wide = (shape.layer - 2 * shape.hidden * (shape.query + shape.key_value + 1)) / (3 * shape.hidden)
    attention = 2 * (shape.hidden + shape.query) + 2 * (shape.hidden + shape.key_value)
    return rank * shape.layers * (attention + 3 * (shape.hidden + wide))


def gathered(shape: Shape, width: int) -> float:
    """Weights that a rank holds whole for a moment, copied even where it is the only one: two layers, and the
    embeddings, which are the root's."""
    return width * (2 * shape.layer + shape.embeddings)


def training_step(kept: Mapping[str, float], passing: Mapping[str, float], micro_batches: float, rest: float) -> Memory:
    """The larger of the two moments of a step: the end of a forward pass, and the optimizer's update.

    kept: as `trained` gives it, and other models. passing: what a micro-batch needs until its backward pass ends. The
    first micro-batch finds no gradients: with one alone they come as its activations go.
    """
    gradients = kept["gradients"]
    if micro_batches <= 1:
        gradients = max(0.0, gradients - passing["activations"])
    update = kept["gradients"]  # the root of the second moment exists beside it
    return most(
        Memory({**kept, "gradients": gradients, **passing, "rest": rest}, "training"),
        Memory({**kept, "update": update, "rest": rest}, "an update"),
    )


def kept_of_a_block(shape: Shape, width: int) -> float:
    """Bytes that autograd keeps of one token in one block without recomputation.

    Both norms keep their float32 input, the scaled rows and their product's factor; attention its query, key, value and
    result, keys and values repeated to the queries' heads; the feed-forward layer four rows of its own width.
    """
    norms = 2 * (FLOAT * shape.hidden + 2 * width * shape.hidden)
    return norms + width * (4 * shape.query + 2 * shape.key_value) + 4 * width * shape.intermediate


def activations(shape: Shape, tokens: float, width: int, checkpointing: bool) -> float:
    """Bytes that autograd keeps of a micro-batch below the head."""
    block = kept_of_a_block(shape, width)
    if checkpointing:  # the input of each block, and one block at a time
        return tokens * (width * shape.hidden * shape.layers + block + 2 * width * shape.intermediate)
    return tokens * shape.layers * block


def forward_pass(shape: Shape, tokens: float, width: int) -> float:
    """Bytes of a pass without gradients: the rows of one block at a time."""
    widest = max(3 * shape.intermediate, 3 * shape.query + 2 * shape.key_value)
    return tokens * width * (3 * shape.hidden + widest)


def head_in_chunks(shape: Shape, tokens: float, live: bool, width: int, platform: Mapping[str, Any]) -> float:
    """Bytes of the fused head: one chunk of logits (four in float32 where a reference is live), the hidden rows and
    their gradient, and the head's own gradient beside the sharded one.

    width: bytes of a logit, in which a GPU's kernels leave it; elsewhere it is float32.
    """
    on_gpu = platform["name"] == "gpu"
    rows = GPU_ROWS if on_gpu else 2 * min(max(2 ** math.ceil(math.log2(shape.hidden)), 256), 1024)
    rows //= 4 if live else 1
    while on_gpu and rows > 16 and rows * shape.vocabulary * FLOAT > 1e9 * platform["device_memory"] / 16:
        rows //= 2
    logits = min(tokens, rows) * shape.vocabulary * (4 * FLOAT if live else width if on_gpu else FLOAT)
    return logits + 2 * FLOAT * tokens * shape.hidden + FLOAT * shape.vocabulary * shape.hidden


def logits_of_rows(shape: Shape, rows: float) -> float:
    """Bytes of float32 logits of some rows."""
    return FLOAT * rows * shape.vocabulary


def whole_logits(shape: Shape, tokens: float, width: int) -> float:
    """Bytes of logits that exist as a whole: as computed, in float32, and two of their gradient."""
    return tokens * shape.vocabulary * (width + 2 * FLOAT + width)


def logits_of_objectives(shape: Shape, tokens: float, width: int, platform: str) -> float:
    """Bytes of whole logits that SFT's objectives are computed from.

    On a GPU, where PyTorch's allocator keeps what log-probabilities, entropies and diagnostics took on the way,
    `GPU_LOGIT` each, as measured; on a CPU `whole_logits`.
    """
    return GPU_LOGIT * tokens * shape.vocabulary if platform == "gpu" else whole_logits(shape, tokens, width)
