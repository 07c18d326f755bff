"""The recipe: every setting, its type, its default and one line about it.

This is the only place that holds defaults. `recipes/base.yaml` is printed from it (`python -m launch.schema`), the
other YAML files hold differences, and a stage receives the resolved values. A field made with `runtime` says how or
where work is done and never bears on an artifact's identity; every other field does.
"""

from __future__ import annotations

import json
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

VLLM_CPU_HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
REWARDS = (
    "boxed", "choice", "code", "date", "exact", "format", "has_boxed_answer", "math", "medcalc", "numeric", "range",
)  # fmt: skip
STAGE_KINDS = ("prepare", "pretrain", "cache", "filter", "sft", "average", "rl", "evaluate")


def setting(default: Any, description: str, **bounds: Any) -> Any:
    """A field whose value is part of an artifact's identity; `bounds` are pydantic's (gt, ge, lt, le, ...)."""
    return Field(default, description=description, validate_default=True, **bounds)


def runtime(default: Any, description: str, **bounds: Any) -> Any:
    """A field that says how or where to compute, never what: not part of any fingerprint."""
    return Field(
        default, description=description, validate_default=True, json_schema_extra={"identity": False}, **bounds
    )


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False, protected_namespaces=()
    )


class Pretrain(Section):
    """A small Qwen2 model trained from nothing on the data set's `pretrain` part (micro-world only)."""

    hidden: int = setting(192, "hidden size", gt=0)
    layers: int = setting(4, "transformer layers", gt=0)
    heads: int = setting(6, "attention heads; divides hidden", gt=0)
    tied: bool = setting(True, "share the embedding with the output head")
    steps: int = setting(600, "optimizer steps", gt=0)
    batch_size: int = setting(64, "sequences a step", gt=0)
    lr: float = setting(2e-3, "peak learning rate", gt=0)
    weight_decay: float = setting(0.1, "AdamW, matrices only", ge=0)
    skills: list[str] = setting([], "which skills' text to train on; empty: all")
    seed: int = setting(0, "initial weights and batch order")

    @model_validator(mode="after")
    def _heads(self) -> Pretrain:
        if self.hidden % self.heads:
            raise ValueError(f"heads={self.heads} does not divide hidden={self.hidden}; change either")
        return self


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
    attention: Literal["sdpa", "flash_attention_2", "eager"] = setting("sdpa", "attention kernel; missing is an error")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "weights and activations in training")
    chat_template: str | None = setting(None, "Jinja file that replaces the tokenizer's chat template")
    eos: str | None = setting(None, "token that ends a turn, where the model's own files name another one")
    trust_remote_code: bool = setting(False, "run Python code that comes with the model")


class Microworld(Section):
    """Sizes of the embedded world (docs/micro_world.md)."""

    pretrain_examples: int = setting(48_000, "worked problems in the pretraining text", gt=0)
    sft_examples: int = setting(1024, "demonstrations", gt=0)
    sft_val_examples: int = setting(128, "held-out demonstrations", gt=0)
    rl_prompts: int = setting(1024, "prompts for reinforcement learning", gt=0)
    rl_val_prompts: int = setting(64, "held-out prompts for reinforcement learning", gt=0)
    target_problems: int = setting(256, "held-out problems of the target domain", gt=0)
    skill_problems: int = setting(128, "held-out problems of each general skill", gt=0)


class Files(Section):
    """One's own data; the columns are in docs/data.md."""

    sft_train: str | None = setting(None, "JSONL or Parquet of chats")
    sft_val: str | None = setting(None, "JSONL or Parquet of held-out chats")
    rl_train: str | None = setting(None, "JSONL or Parquet of prompts and answers")
    rl_val: str | None = setting(None, "JSONL or Parquet of held-out prompts and answers")
    benchmarks: dict[str, str] = setting({}, "name -> JSONL or Parquet of problems")


class Data(Section):
    source: Literal["microworld", "files"] = setting("files", "where rows come from")
    seed: int = setting(0, "generation and splits")
    microworld: Microworld = setting(Microworld(), "sizes of the embedded world")
    files: Files = setting(Files(), "one's own files")
    system_prompt: str | None = setting(None, "put before every chat that has none")
    max_length: int = setting(2048, "tokens a chat may have", gt=1)
    on_long_row: Literal["error", "drop", "truncate_left", "truncate_right"] = setting(
        "error", "a chat over max_length"
    )
    on_bad_row: Literal["error", "drop"] = setting("error", "a row that breaks the schema")


class Cache(Section):
    """What the frozen base or teacher says about the training responses, computed once."""

    top_k: int = setting(64, "ids stored for each response token", gt=0)
    encoding: Literal["compact", "lossless"] = setting("compact", "4 bytes an entry, or fp32 log-probabilities")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "precision of the forward pass")
    producer: Literal["forward", "vllm"] = setting("forward", "a forward pass, or vLLM prompt log-probabilities")
    workers: int = runtime(1, "model replicas", gt=0)
    processes: int = runtime(1, "devices that one replica's weights are sharded over, by verl's engine", gt=0)
    tensor_parallel: int = runtime(1, "devices of one vLLM replica", gt=0)
    gpu_memory: float = runtime(0.85, "share of a device's memory for vLLM", gt=0, le=1)
    tokens_per_batch: int = runtime(8192, "token budget of one forward pass", gt=0)
    sample_sequences: int = setting(100, "chats whose every position is sampled, for SED-SFT's threshold", ge=0)
    tokens_per_shard: int = setting(262_144, "response tokens in one shard file", gt=0)


class Lora(Section):
    rank: int = setting(16, "rank of the update", gt=0)
    alpha: int = setting(32, "scale is alpha / rank", gt=0)
    target_modules: str | list[str] = setting("all-linear", "modules that get an update")


class Regularizer(Section):
    name: Literal["none", "l2_to_init"] = setting("none", "penalty on the parameters, with any objective")
    weight: float = setting(0.0, "its coefficient", ge=0)


class SftMetrics(Section):
    kl_from_base: bool = setting(False, "log KL(base || student) on the training tokens; makes a base cache")


class Sft(Section):
    lr: float = setting(1e-5, "peak learning rate", gt=0)
    epochs: int = setting(1, "passes over the data", gt=0)
    steps: int | None = setting(None, "optimizer steps; replaces epochs")
    batch_size: int = setting(64, "chats a step, over all devices", gt=0)
    schedule: Literal["constant", "cosine"] = setting("cosine", "learning rate after warm-up")
    warmup: float = setting(0.05, "share of the steps", ge=0, lt=1)
    min_lr_ratio: float = setting(0.0, "last learning rate over the peak (cosine)", ge=0, le=1)
    weight_decay: float = setting(0.0, "AdamW", ge=0)
    betas: tuple[float, float] = setting((0.9, 0.999), "AdamW")
    clip_grad: float = setting(1.0, "global gradient norm", gt=0)
    packed: bool = setting(True, "concatenate chats without padding")
    lora: Lora | None = setting(None, "train a low-rank update")
    regularizer: Regularizer = setting(Regularizer(), "penalty on the parameters")
    metrics: SftMetrics = setting(SftMetrics(), "extra measurements")
    validate_every: int = setting(0, "steps between validations; 0: only at the end", ge=0)
    publish_steps: list[int] = setting([], "checkpoints published beside the final one")
    fused: Literal["auto", "on", "off"] = runtime("auto", "compute the objective without whole logits")
    processes: int = runtime(1, "data-parallel processes (devices)", gt=0)
    sequence_parallel: int = runtime(1, "Ulysses sequence parallel size", gt=0)
    micro_batch_size: int = runtime(16, "chats a device takes at once without dynamic batches", gt=0)
    dynamic_batch: bool = runtime(True, "fill micro-batches by tokens")
    tokens_per_micro_batch: int = runtime(8192, "token budget of a dynamic micro-batch", gt=0)
    gradient_checkpointing: bool = runtime(False, "recompute activations in the backward pass")
    save_every: int = runtime(50, "steps between resumable checkpoints", gt=0)
    keep_checkpoints: int = runtime(1, "resumable checkpoints kept", gt=0)
    verl: dict[str, Any] = setting({}, "any other key of verl's SFT configuration")


class Average(Section):
    """WiSE-FT: theta = (1 - weight) * base + weight * fine-tuned."""

    weight: float | None = setting(None, "share of the fine-tuned weights; null leaves the stage out")


class DynamicSampling(Section):
    enabled: bool = setting(False, "drop groups whose rewards are all equal and sample again")
    max_batches: int = setting(10, "batches sampled for one update before the run stops with an error", gt=0)


class Overlong(Section):
    enabled: bool = setting(False, "penalise responses close to the length limit")
    buffer: int = setting(0, "tokens before the limit where the penalty starts", ge=0)
    penalty: float = setting(1.0, "penalty at the limit", ge=0)


class Probe(Section):
    prompts: int = setting(8, "prompts sampled before RL starts; 0: no probe", ge=0)
    samples: int = setting(16, "samples of each", gt=0)


class Reward(Section):
    name: str = setting("math", "a reward of rl_stage.rewards or a dotted path")
    settings: dict[str, Any] = setting({}, "keyword arguments of the reward")
    correct: float = setting(1.0, "score of a correct response")
    wrong: float = setting(0.0, "score of any other response")
    timeout: float = runtime(10.0, "seconds one response may take to grade", gt=0)

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, value: str) -> str:
        if value not in REWARDS and not value.rpartition(".")[0]:
            raise ValueError(f"allowed: {', '.join(REWARDS)}, or a dotted path to a function of one's own")
        return value


class DifficultyFilter(Section):
    """Keep the prompts that a model solves sometimes."""

    enabled: bool = setting(False, "filter the RL prompts first")
    model: str | None = setting(None, "Hugging Face name or directory; null: the base model")
    samples: int = setting(8, "samples a prompt", gt=0)
    temperature: float = setting(1.0, "sampling temperature", ge=0)
    above: float = setting(0.0, "keep pass rates strictly above", ge=0, le=1)
    below: float = setting(1.0, "keep pass rates strictly below", ge=0, le=1)

    @model_validator(mode="after")
    def _bounds(self) -> DifficultyFilter:
        if self.above >= self.below:
            raise ValueError(f"no pass rate is above {self.above:g} and below {self.below:g}; set above < below")
        return self


class Rl(Section):
    enabled: bool = setting(True, "run reinforcement learning")
    start: str | list[int] = setting(
        "final", "SFT checkpoints RL starts from: final, best, all or a list of steps", alias="from"
    )
    algorithm: Literal["grpo", "dapo"] = setting("grpo", "label of the group of settings below")
    steps: int = setting(100, "updates of the rollout policy", gt=0)
    prompts: int = setting(128, "prompts a step", gt=0)
    samples: int = setting(8, "responses a prompt (group size)", gt=1)
    mini_batch: int = setting(128, "prompts an optimizer step", gt=0)
    max_prompt_length: int = setting(1024, "tokens", gt=0)
    max_response_length: int = setting(2048, "tokens", gt=0)
    temperature: float = setting(1.0, "of rollouts", gt=0)
    top_p: float = setting(1.0, "of rollouts", gt=0, le=1)
    lr: float = setting(1e-6, "learning rate", gt=0)
    warmup_steps: int = setting(0, "updates of the rollout policy until the learning rate is reached", ge=0)
    weight_decay: float = setting(0.01, "AdamW", ge=0)
    clip_grad: float = setting(1.0, "global gradient norm", gt=0)
    clip_low: float = setting(0.2, "lower clip of the ratio", gt=0)
    clip_high: float = setting(0.2, "upper clip of the ratio", gt=0)
    normalize_advantage: bool = setting(True, "divide by the group's standard deviation")
    loss_aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] = setting(
        "token-mean", "verl's name"
    )
    kl_weight: float = setting(0.0, "weight of the KL term against the reference policy; 0: no reference model", ge=0)
    kl_estimator: Literal["kl", "abs", "mse", "low_var_kl", "full"] = setting("low_var_kl", "verl's name")
    entropy_weight: float = setting(0.0, "entropy bonus", ge=0)
    dynamic_sampling: DynamicSampling = setting(DynamicSampling(), "DAPO's dynamic sampling")
    overlong: Overlong = setting(Overlong(), "DAPO's length penalty")
    reward: Reward = setting(Reward(), "how a response is scored")
    filter: DifficultyFilter = setting(DifficultyFilter(), "difficulty filter of the prompts")
    probe: Probe = setting(Probe(), "is any reward within reach?")
    on_unreachable: Literal["warn", "stop"] = setting("warn", "the probe found no or only solved prompts")
    lora: Lora | None = setting(None, "train a low-rank update")
    validate_every: int = setting(0, "steps between validations; 0: before and after", ge=0)
    publish_steps: list[int] = setting([], "checkpoints published beside the final one")
    full_determinism: bool = setting(False, "verl's full-determinism mode: slower, equal bit for bit")
    mode: Literal["sync", "colocate_async"] = setting("sync", "verl's V1 trainer mode")
    save_every: int = runtime(20, "steps between resumable checkpoints; 0: none", ge=0)
    keep_checkpoints: int = runtime(1, "resumable checkpoints kept", gt=0)
    tokens_per_micro_batch: int = runtime(16_384, "token budget of a dynamic micro-batch", gt=0)
    processes: int = runtime(1, "devices", gt=0)
    tensor_parallel: int = runtime(1, "devices of one vLLM replica", gt=0)
    gpu_memory: float = runtime(0.5, "share of a device's memory for vLLM", gt=0, le=1)
    gradient_checkpointing: bool = runtime(True, "recompute activations in the backward pass")
    step_timeout: float = runtime(
        3600.0, "seconds start-up, one step, one weight sync or one validation may take", gt=0
    )
    verl: dict[str, Any] = setting({}, "any other key of verl's RL configuration")

    @field_validator("start")
    @classmethod
    def _start_is_known(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, str) and value not in ("final", "best", "all"):
            raise ValueError("allowed: final, best, all, or a list of steps like [50,100]")
        return value


class Benchmark(Section):
    name: str = setting("target", "file name in the prepared data, without .parquet")
    num_samples: int = setting(16, "samples a problem", gt=0)
    temperature: float = setting(1.0, "sampling temperature", ge=0)
    top_p: float = setting(1.0, "nucleus", gt=0, le=1)
    max_tokens: int = setting(2048, "response tokens", gt=0)
    greedy: bool = setting(True, "one greedy response as well")
    prompting: Literal["chat", "plain"] = setting("chat", "the chat template, or bare text for base models")
    balanced: bool = setting(False, "balanced accuracy as well: the mean over the answers' classes")


class Task(Section):
    """A task of lm-evaluation-harness with its own prompts, metrics and defaults."""

    name: str = setting("mmlu", "task or group, by the harness' name")
    num_fewshot: int | None = setting(None, "examples in the prompt; null: the task's own", ge=0)
    limit: int | None = setting(None, "problems of each task; null: all", gt=0)
    chat: bool = setting(False, "apply the chat template")


class Eval(Section):
    enabled: bool = setting(True, "evaluate the base and every checkpoint")
    benchmarks: list[Benchmark] = setting([], "what to run")
    tasks: list[Task] = setting([], "what to run through lm-evaluation-harness")
    task_files: str | None = setting(None, "directory of one's own task files and of local data for harness tasks")
    base_minimum: float | None = setting(None, "average only where the base model reaches this (TALR: 0.5)", ge=0, le=1)
    k: list[int] = setting([1, 2, 4, 8, 16, 32, 64], "pass@k; a benchmark leaves out those above its num_samples")
    target: str = setting("target", "the benchmark of the SFT domain; the others count as general ability")
    seed: int = setting(0, "sampling")
    resamples: int = setting(2000, "bootstrap resamples", gt=0)
    dtype: Literal["float32", "bfloat16"] = setting("float32", "weights in vLLM")
    max_length: int = setting(4096, "prompt and response tokens", gt=0)
    held_out_chats: int = setting(256, "held-out chats for token entropy and KL from the base; 0: none", ge=0)
    batch_size: int = setting(512, "requests in one saved shard; sums of a batch depend on its size", gt=0)
    run_generated_code: bool = setting(False, "allow the grader `code` to run what the model wrote, in the sandbox")
    replicas: int = runtime(1, "vLLM engines, each on its own devices; on the CPU platform one core each", gt=0)
    gpu_memory: float = runtime(0.6, "share of a device's memory for vLLM; held-out passes need the rest", gt=0, le=1)

    @model_validator(mode="after")
    def _responses_fit(self) -> Eval:
        for benchmark in self.benchmarks:
            if benchmark.max_tokens >= self.max_length:
                raise ValueError(
                    f"max_tokens={benchmark.max_tokens} of {benchmark.name!r} leaves no room for a prompt in "
                    f"eval.max_length={self.max_length}; raise that"
                )
        return self


class Placement(Section):
    """Devices of one stage: a Ray placement group of `nodes` bundles."""

    nodes: int = runtime(1, "nodes", gt=0)
    gpus_per_node: float = runtime(0, "devices on each; a fraction for small stages", ge=0)
    cpus: float = runtime(1, "cores on each", gt=0)
    strategy: Literal["STRICT_PACK", "PACK", "SPREAD", "STRICT_SPREAD"] = runtime("PACK", "Ray's strategy")


class Platform(Section):
    name: Literal["cpu", "gpu"] = setting("gpu", "what the models run on")
    threads: int = setting(2, "CPU threads of a stage's own tensor code; sums depend on it", gt=0)
    env: dict[str, str] = runtime({}, "environment of every stage")
    nodes: int = runtime(1, "nodes of the cluster", gt=0)
    gpus_per_node: int = runtime(1, "devices of a node; logical ones on the CPU platform", gt=0)
    placement: dict[str, Placement] = runtime({}, "stage -> devices; the rest is derived from processes and replicas")

    @field_validator("placement")
    @classmethod
    def _known_stages(cls, value: dict[str, Placement]) -> dict[str, Placement]:
        for name in value:
            if name not in STAGE_KINDS:
                raise ValueError(f"there is no stage {name}; allowed: {', '.join(STAGE_KINDS)}")
        return value


class Selection(Section):
    """Of branches that differ in some fields (and in `seed`) alone, only the best goes on to RL and evaluation."""

    fields: list[str] = runtime([], "swept fields to choose on validation data, e.g. [sft.lr]; empty: all go on")
    metric: str = runtime("val_loss", "a scalar of SFT's metrics.json, averaged over seeds")
    goal: Literal["min", "max"] = runtime("min", "which value of the metric is best")


class Run(Section):
    root: str = runtime("runs", "the artifact store")
    replica: str | None = runtime(None, "fsspec URL that artifacts are taken from and copied to, e.g. s3://bucket/runs")
    retries: int = runtime(2, "attempts after a fault", ge=0)
    backoff: float = runtime(5.0, "seconds before the first retry; doubles", ge=0)
    timeout: float = runtime(86_400.0, "seconds one stage may take", gt=0)
    silence: float = runtime(1_800.0, "seconds without progress or log lines after which a stage counts as hung", gt=0)
    grace: float = runtime(30.0, "seconds between SIGTERM and SIGKILL", gt=0)
    max_device_hours: float | None = runtime(None, "stop starting stages beyond this")


class Recipe(Section):
    name: str = runtime("", "set from the file name")
    seed: int = setting(0, "training seed of SFT and RL")
    model: Model = setting(Model(), "base model and teacher")
    data: Data = setting(Data(), "data sets")
    cache: Cache = setting(Cache(), "reference cache")
    objective: dict[str, Any] = setting({"name": "sft"}, "an SFT objective and its settings (recipes/objective)")
    sft: Sft = setting(Sft(), "supervised fine-tuning")
    average: Average = setting(Average(), "weight averaging after SFT")
    rl: Rl = setting(Rl(), "reinforcement learning")
    eval: Eval = setting(Eval(), "evaluation")
    platform: Platform = setting(Platform(), "devices")
    run: Run = setting(Run(), "store, retries, limits")
    selection: Selection = setting(Selection(), "choosing swept settings on validation data")
    sweep: list[dict[str, Any]] = runtime([], "uneven branches: each entry is a mapping of overrides")

    @model_validator(mode="after")
    def _one_base(self) -> Recipe:
        if (self.model.path is None) == (self.model.pretrain is None):
            raise ValueError("model: set exactly one of model.path and model.pretrain")
        return self

    @model_validator(mode="after")
    def _head_width(self) -> Recipe:
        pretrain = self.model.pretrain
        if pretrain is None or self.platform.name != "cpu" or not (self.rl.enabled or self.eval.enabled):
            return self
        width = pretrain.hidden / pretrain.heads
        if width not in VLLM_CPU_HEAD_WIDTHS:
            allowed = ", ".join(map(str, VLLM_CPU_HEAD_WIDTHS))
            raise ValueError(
                f"model.pretrain.heads={pretrain.heads}: {width:g} of model.pretrain.hidden={pretrain.hidden} each; "
                f"vLLM's attention on a CPU allows {allowed}; change either"
            )
        return self

    @model_validator(mode="after")
    def _sft_sizes(self) -> Recipe:
        sft = self.sft
        late = [step for step in sft.publish_steps if step < 1 or (sft.steps is not None and step > sft.steps)]
        if late:
            raise ValueError(f"sft.publish_steps={late}: allowed: 1 to sft.steps={sft.steps}")
        if sft.processes % sft.sequence_parallel:
            raise ValueError(
                f"sft.processes={sft.processes} is not a multiple of sft.sequence_parallel={sft.sequence_parallel}"
            )
        if sft.sequence_parallel > 1 and not (sft.packed and self.model.attention == "flash_attention_2"):
            # verl spreads sequences over devices inside the flash attention call; another kernel would cut attention
            raise ValueError(
                f"sft.sequence_parallel={sft.sequence_parallel}: more than 1 needs sft.packed=true and "
                "model.attention=flash_attention_2"
            )
        ranks = sft.processes // sft.sequence_parallel
        if sft.batch_size % ranks:
            raise ValueError(
                f"sft.batch_size={sft.batch_size} is not a multiple of the {ranks} data-parallel processes; change it "
                "or sft.processes"
            )
        chats = sft.batch_size // ranks
        if not sft.dynamic_batch and chats % min(sft.micro_batch_size, chats):
            raise ValueError(
                f"sft.micro_batch_size={sft.micro_batch_size} does not divide the {chats} chats of a device; change it "
                "or set sft.dynamic_batch=true"
            )
        if sft.tokens_per_micro_batch < self.data.max_length:
            raise ValueError(
                f"sft.tokens_per_micro_batch={sft.tokens_per_micro_batch} holds no chat of data.max_length="
                f"{self.data.max_length}; raise it to at least that"
            )
        if sft.lora and sft.regularizer.name == "l2_to_init":
            raise ValueError(
                "sft.lora excludes sft.regularizer.name=l2_to_init: the trained weights are not the model's; unset one"
            )
        if self.platform.name == "cpu" and self.model.dtype != "float32":
            raise ValueError(f"model.dtype={self.model.dtype}: platform cpu trains in float32; set model.dtype=float32")
        return self

    @model_validator(mode="after")
    def _rl_sizes(self) -> Recipe:
        rl, devices = self.rl, self.platform.gpus_per_node
        longest = rl.max_response_length
        if not rl.enabled:
            return self
        if rl.mini_batch > rl.prompts or rl.prompts % rl.mini_batch:
            raise ValueError(f"rl.mini_batch={rl.mini_batch} does not divide rl.prompts={rl.prompts}; change either")
        if rl.processes > devices and rl.processes % devices:
            raise ValueError(
                f"rl.processes={rl.processes} does not fill whole nodes of platform.gpus_per_node={devices}; make it "
                f"at most {devices}, or a multiple of it"
            )
        responses = rl.mini_batch * rl.samples
        if responses % rl.processes:
            raise ValueError(
                f"rl.processes={rl.processes} does not divide the {responses} responses of rl.mini_batch * rl.samples; "
                "change one of them"
            )
        if rl.processes % rl.tensor_parallel:
            raise ValueError(
                f"rl.tensor_parallel={rl.tensor_parallel} does not divide rl.processes={rl.processes}; change either"
            )
        if rl.tensor_parallel > 1 and self.platform.name == "cpu":
            raise ValueError(f"rl.tensor_parallel={rl.tensor_parallel}: set 1 on platform cpu")
        if rl.overlong.enabled and not 0 < rl.overlong.buffer <= longest:
            raise ValueError(f"rl.overlong.buffer={rl.overlong.buffer}: allowed: 1 to rl.max_response_length={longest}")
        late = [step for step in rl.publish_steps if not 0 < step <= rl.steps]
        if late:
            raise ValueError(f"rl.publish_steps={late}: allowed: 1 to rl.steps={rl.steps}")
        return self

    @model_validator(mode="after")
    def _sharded_cache(self) -> Recipe:
        given = f"cache.processes={self.cache.processes}"
        if self.cache.processes > 1 and self.cache.producer == "vllm":
            raise ValueError(f"{given}: only cache.producer=forward is sharded; set cache.tensor_parallel for vllm")
        if self.cache.processes > 1 and self.cache.dtype != "float32" and self.platform.name == "cpu":
            raise ValueError(f"{given}: platform cpu shards models in float32; set cache.dtype=float32")
        return self


def identity(section: BaseModel) -> dict[str, Any]:
    """The fields of `section` that bear identity, as JSON values, recursively; `runtime` fields are left out."""
    return {
        name: _identity(getattr(section, name))
        for name, info in type(section).model_fields.items()
        if not (isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("identity") is False)
    }


def _identity(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    if isinstance(value, dict):
        return {key: _identity(item) for key, item in value.items()}
    return value


def base_yaml() -> str:
    """The text of `recipes/base.yaml`: every field with its default and description."""
    lines = [
        "# Every field of a recipe with its default; printed by `python -m launch.schema`, so change launch/schema.py."
    ]
    lines += [
        "# [runtime] marks a field that never changes what is computed.",
        *_yaml_lines(Recipe(model=Model(path="-")), ""),
    ]
    text = "\n".join(lines) + "\n"
    return text.replace('\n  path: "-"', "\n  path: null", 1)


def _yaml_lines(section: BaseModel, indent: str) -> list[str]:
    lines = []
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        is_runtime = isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("identity") is False
        comment = f"  # {'[runtime] ' if is_runtime else ''}{info.description}"
        key = info.alias or name
        if isinstance(value, BaseModel):
            lines += [f"{indent}{key}:{comment}", *_yaml_lines(value, indent + "  ")]
            continue
        lines.append(f"{indent}{key}: {json.dumps(value)}{comment}")
        optional = next(
            (arg for arg in get_args(info.annotation) if isinstance(arg, type) and issubclass(arg, Section)), None
        )
        if optional is not None:
            lines += [f"{indent}# {line[len(indent) :]}" for line in _yaml_lines(optional(), indent + "  ")]
    return lines


if __name__ == "__main__":
    print(base_yaml(), end="")
