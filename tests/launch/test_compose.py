import pytest

from launch.compose import RecipeError, branches

RECIPE = """
defaults:
  - base
  - platform: cpu
  - _self_
model:
  path: some/model
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(RECIPE)
    return str(path)


def one(recipe, *overrides):
    (composed,) = branches(recipe, overrides)
    return composed.recipe


def test_values_and_groups(recipe):
    composed = one(recipe, "sft.lr=3e-5", "platform=gpu", "platform.nodes=2", "rl.from=[10,20]", "model.revision='1e5'")
    assert composed.sft.lr == 3e-5
    assert (composed.platform.name, composed.platform.nodes) == ("gpu", 2)
    assert composed.rl.start == [10, 20]
    assert composed.model.revision == "1e5"
    assert composed.name == "own"


def test_optional_sections_are_created(recipe):
    assert one(recipe, "sft.lora.rank=4").sft.lora.rank == 4


def test_axes_multiply_and_the_list_adds_uneven_branches(recipe):
    found = list(branches(recipe, ["seed=range(0,3)", "sft.lr=1e-5,2e-5"]))
    assert [(b.recipe.seed, b.recipe.sft.lr) for b in found] == [(s, lr) for s in range(3) for lr in (1e-5, 2e-5)]
    uneven = list(branches(recipe, ["sweep=[{sft.lr: 1e-3},{sft.lr: 1e-4, seed: 5}]"]))
    assert [(b.recipe.sft.lr, b.recipe.seed) for b in uneven] == [(1e-3, 0), (1e-4, 5)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sft.lrr=1"],
            r"sft\.lrr: unknown field; did you mean lr\? allowed: average|sft\.lrr: unknown field; did you mean lr",
        ),
        (["sft.lr=-1"], r"sft\.lr=-1: .*greater than 0"),
        (["sft.lr=fast"], r"sft\.lr=fast: .*number"),
        (["rl.from=last"], r"allowed: final, best, all"),
        (["platform=cpuu"], r"did you mean cpu\? allowed: cpu, gpu"),
        (["sft.lr=1e-5,2e-5", "sft.lr=3e-5"], r"sft\.lr and sft\.lr overlap"),
        (["sft.lora={rank: 4}", "sft.lora.rank=8"], r"overlap"),
        (["sweep=[{sft.lr: 1}]", "sft.lr=1,2"], r"sweep list; give each field once"),
        (["~seed"], r"deleting is not supported; set seed=null"),
        (["seed=[1"], r"write key=value"),
        (["model.pretrain={}"], r"exactly one of model.path and model.pretrain"),
        (["seed.x=1"], r"seed is a value, not a section"),
    ],
)
def test_errors_are_one_line(recipe, overrides, message):
    with pytest.raises(RecipeError, match=message) as error:
        list(branches(recipe, overrides))
    assert "\n" not in str(error.value)


def test_unknown_recipes_name_the_known_ones():
    with pytest.raises(RecipeError, match="did you mean microworld"):
        list(branches("microwrld", []))
    with pytest.raises(RecipeError, match="no such file"):
        list(branches("absent.yaml", []))
