"""What a kind of stage is. Imports no torch, Ray, verl or vllm, and neither do the kinds.

A kind is one file of `launch.stages` that holds one instance of a subclass, or a file of the user's that `stages:
[...]` in a recipe names. The planner asks every kind for its steps in a branch; a step names its inputs by the roles of
other steps, so that kinds need not know where in the graph they stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from launch.recipe.model import Model
from launch.recipe.platform import Placement, Platform
from launch.recipe.section import Section
from launch.stages.memory import Memory, Shape


class Settings(Section):
    """What every stage function receives; a kind's own subclass adds its sections."""

    model: Model
    platform: Platform


@dataclass(frozen=True)
class Made:
    """An input that another step of the branch makes.

    role: of that step. select: "" for its whole artifact, "checkpoint:final", "checkpoint:best" or "checkpoint:<step>"
    for a Hugging Face directory in it. identifies: False where the input is read for a check that can only refuse.
    """

    role: str
    select: str = ""
    identifies: bool = True


@dataclass(frozen=True)
class Outside:
    """An input from outside the store: a local path, or a hub name with its revision.

    field: of the recipe, for messages; revision_field: the one that holds its revision. model: whether it is a model,
    which the stage gets as a directory with `eos` as the token that ends a turn. local: it cannot be a hub name.
    """

    path: str
    field: str
    revision: str | None = None
    model: bool = False
    eos: str | None = None
    local: bool = False
    revision_field: str = ""


@dataclass(frozen=True)
class Sibling:
    """An input that is the model with which another branch of the recipe ends SFT.

    branch: its name as `plan` prints it, of the same overrides without those of the fields `without`; what makes that
    model becomes part of the graph. field: of the recipe, for messages.
    """

    branch: str
    field: str
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """A model in a step's artifact that is worth measuring.

    name: of the model in its branch ("base", "sft", "sft@50", "rl@final", "rl@final-20"). phase: base, sft or rl.
    source: the input that leads to it. label: what it is called in addresses. start: of an RL model, what it started
    from ("base", "final", "50"). step: of a checkpoint before the last; None: the model with which the phase ended.
    measured: False where another model of the branch is measured in its place.
    """

    name: str
    phase: str
    source: Made | Outside
    label: str
    start: str | None = None
    step: int | None = None
    measured: bool = True


@dataclass(frozen=True)
class Measures:
    """What a step has scores of: a model of the branch, by the benchmark, task or held-out chats called `name`."""

    model: str
    name: str
    kind: str


@dataclass(frozen=True)
class Step:
    """One stage of a branch before it has a fingerprint.

    role: its name in the branch. label: a word for its address. settings: what the function receives. identity: those
    of its settings that determine the result. publishes: models in its artifact. measures: what its artifact has scores
    of. asks: what its artifact has answers or log-probabilities of, not yet scored. of: name of the model that it is
    about, where it has neither.
    """

    role: str
    label: str
    settings: Section
    identity: Mapping[str, Any]
    inputs: Mapping[str, Made | Outside | Sibling] = field(default_factory=dict)
    publishes: tuple[Published, ...] = ()
    measures: Measures | None = None
    asks: Measures | None = None
    of: str = ""


@dataclass(frozen=True)
class Tokens:
    """Training chats: how many, their tokens, the supervised ones, and whether they were counted or guessed."""

    chats: float
    tokens: float
    responses: float
    counted: bool


@dataclass(frozen=True)
class Cost:
    """Work of one stage. flops: operations; bytes: of its artifact, exact if they follow from counts; scratch_bytes:
    resumable checkpoints while it runs; start_seconds: imports and engines; sampling: whether it samples (slower)."""

    flops: float = 0.0
    bytes: float = 0.0
    scratch_bytes: float = 0.0
    exact: bool = False
    start_seconds: float = 10.0
    sampling: bool = False


class Counts(Protocol):
    """What is known of a stage's inputs before it runs."""

    settings: Any

    def parameters(self, name: str = "model") -> float:
        """Parameters of the model that input `name` is or leads to."""
        ...

    def tokens(self, name: str = "data") -> Tokens:
        """Of the training chats that input `name` is or leads to."""
        ...

    def rows(self, name: str = "data") -> float:
        """Rows of the prompts or problems that input `name` is or leads to."""
        ...

    def has(self, name: str) -> bool:
        """Whether the stage has an input `name`."""
        ...


class Branch(Protocol):
    """One line of the results, as the kinds see it while its steps are collected."""

    name: str
    overrides: tuple[str, ...]  # that tell it from its siblings
    recipe: Any
    steps: dict[str, Step]
    fingerprints: dict[str, str]  # by role; of all steps once `joint_steps` is asked

    @property
    def objective(self) -> Any:
        """The SFT objective with its settings."""
        ...

    @property
    def models(self) -> list[Published]:
        """The models that the steps so far publish, in that order."""
        ...


@dataclass(frozen=True)
class Given:
    """An input of a joint step: the step `role` of the branch called `branch`."""

    branch: str
    role: str


class StageKind:
    """A kind of stage; its file's name is its name. Subclass it, set the attributes, make one instance."""

    name: str
    version: int = 1  # raise it when the stage computes something else from the same settings
    function: str  # "package.module:function", called as run(settings, inputs, output, scratch, report)
    section: type[Section] | None = None
    describes: str = ""  # of the section, for base.yaml
    after: tuple[str, ...] = ()  # kinds whose steps have to be in the branch before this kind is asked
    halves: tuple[str, ...] = ()  # runtime fields ("sft.micro_batch_size") that an out-of-memory retry halves
    shares_engine: bool = False  # stages with equal settings of `engine` may run in turn in one child
    reads_rows: bool = False  # it only reads rows, without a device: `prepare` and `--dry-run --data` run it
    joins: str = ""  # why a Ray cluster that its stages of several nodes join serves one of them at a time
    decides: bool = False  # its metrics.json may decide a selection
    tables: tuple[str, ...] = ()  # patterns of the tables (JSON) in its artifact that the report shows
    series: str = ""  # what trackers (run.trackers) file its numbers under; "": they show none of them
    curve: str = ""  # JSON rows with `step`, in its scratch directory while it runs, then in its artifact: for trackers

    @property
    def key(self) -> str:
        """The recipe's section that holds this kind's settings."""
        return self.name

    def check(self, recipe: Any) -> None:
        """Refuses settings that do not go together. Raises ValueError (one line: field, value, remedy)."""

    def steps(self, branch: Branch) -> Iterable[Step]:
        """Its steps in a branch; none if the recipe does not ask for them. Raises ConfigError."""
        return ()

    def joint_steps(self, branches: Mapping[str, Branch]) -> Iterable[tuple[Step, Mapping[str, Given]]]:
        """Steps over several branches, each with its inputs by name."""
        return ()

    def placement(self, recipe: Any) -> Placement:
        """Devices and cores of one stage, where `platform.placement.<kind>` does not say."""
        return Placement(gpus_per_node=1)

    def takes_turns(self, placement: Mapping[str, Any]) -> bool:
        """Whether stages of this kind with this placement run one at a time on a cluster."""
        return bool(self.joins) and placement["nodes"] > 1

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        """What one stage takes, from what is known of its inputs."""
        return Cost()

    def memory(self, settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Memory | None:
        """What one device holds at most; None for a kind that takes none. shapes: of the inputs that are models."""
        return None

    def smaller(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        """Runtime fields ("sft.processes") and values with which a stage takes less of a device, mildest first."""
        return ()

    def shares(self, settings: Mapping[str, Any]) -> bool:
        """Whether a stage with these settings may share a child."""
        return self.shares_engine

    def engine(self, settings: Mapping[str, Any]) -> Any:
        """What has to be equal for two stages to share a child, where `shares_engine`; JSON values."""
        return settings

    def parameters(self, settings: Mapping[str, Any]) -> float | None:
        """Parameters of the model that it makes; None: those of the model that it reads."""
        return None

    def shape(self, settings: Mapping[str, Any]) -> Shape | None:
        """Shape of the model that it makes; None: that of the model that it reads."""
        return None

    def contents(self, settings: Mapping[str, Any], inputs: Mapping[str, str], directory: Path | None) -> Any:
        """Rows (float) or Tokens that its artifact holds, from the artifact if it is there; None: those of its data."""
        return None

    def halved(self, settings: Mapping[str, Any], field: str) -> int:
        """What an out-of-memory retry makes of one of `halves` ("section.field"); its value where it may not shrink."""
        section, name = field.split(".")
        return max(1, settings[section][name] // 2)

    def scalars(self, artifact: Path) -> Mapping[str, float]:
        """What trackers show of its artifact beside its curve, by name."""
        return {}

    def dry_run(self, settings: Any, inputs: Mapping[str, Path], scratch: Path) -> str | None:
        """Checks what can be checked without running; returns what was found fine. Raises ValueError."""
        return None

    def mend(self, artifact: Path, scratch: Path) -> str:
        """Moves what is whole of a damaged artifact to `scratch`; returns what was damaged, in words."""
        raise NotImplementedError(f"stage {self.name} cannot mend {artifact}")

    @property
    def mendable(self) -> bool:
        """Whether a damaged artifact is worth taking apart."""
        return type(self).mend is not StageKind.mend
