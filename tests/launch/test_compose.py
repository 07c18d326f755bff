import pytest

from launch.recipe.compose import RecipeError, branches

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


WITH_OBJECTIVE = RECIPE.replace("  - platform", "  - objective: sft\n  - platform")


def one(recipe, *overrides):
    (composed,) = branches(recipe, overrides)
    return composed.recipe


def test_values_and_groups(recipe):
    composed = one(
        recipe,
        "sft.lr=3e-5",
        "platform=gpu",
        "platform.nodes=2",
        "rl.from=[10,20]",
        "sft.publish_steps=[10,20]",
        "model.revision='1e5'",
    )
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
    assert [b.recipe.seed for b in branches(recipe, ["seed=choice(4,7)"])] == [4, 7]
    uneven = list(branches(recipe, ["sweep=[{sft.lr: 1e-3},{sft.lr: 1e-4, seed: 5}]"]))
    assert [(b.recipe.sft.lr, b.recipe.seed) for b in uneven] == [(1e-3, 0), (1e-4, 5)]


def test_a_recipes_own_list_chooses_groups_and_times_the_axes(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(WITH_OBJECTIVE + "sweep: [{objective: sft, sft.lr: 3e-3}, {objective: lp_sft}]\n")
    found = list(branches(str(path), ["seed=1,2"]))
    assert [(b.recipe.objective["name"], b.recipe.sft.lr == 3e-3, b.recipe.seed) for b in found] == [
        ("sft", True, 1), ("sft", True, 2), ("lp_sft", False, 1), ("lp_sft", False, 2),
    ]  # fmt: skip
    assert [b.recipe.seed for b in branches(str(path), ["sweep=null", "seed=3"])] == [3]


def test_an_override_or_a_row_may_give_what_the_recipe_lacks(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(RECIPE.replace("model:\n  path: some/model\n", ""))
    assert one(str(path), "model.path=a/b").model.path == "a/b"
    rows = branches(str(path), ["sweep=[{model.path: a/b},{model.path: c/d}]"])
    assert [b.recipe.model.path for b in rows] == ["a/b", "c/d"]
    with pytest.raises(RecipeError, match=r"exactly one of model\.path and model\.pretrain"):
        one(str(path))


def test_a_mapping_is_merged_into_its_section():
    world = "data={microworld: {rl_prompts: 5}}"
    (branch,) = branches("microworld", [world])
    (plain,) = branches("microworld", [])
    assert branch.recipe.data == plain.recipe.data.model_copy(
        update={"microworld": plain.recipe.data.microworld.model_copy(update={"rl_prompts": 5})}
    )


def test_hydra_composes_once_for_each_choice_of_groups(tmp_path, monkeypatch):
    import hydra

    (tmp_path / "own.yaml").write_text(WITH_OBJECTIVE)
    recipe = str(tmp_path / "own.yaml")
    composed, compose = [], hydra.compose
    monkeypatch.setattr("hydra.compose", lambda *given: composed.append(given) or compose(*given))
    found = list(branches(recipe, ["objective=sft,dft", "sft.lr=1e-5,2e-5,3e-5", "seed=range(0,4)"]))
    assert len(found) == 24
    assert len(composed) == 3  # the recipe's own choice, for its sweep list, and the two objectives


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sft.lrr=1"],
            r"sft\.lrr: unknown field; did you mean lr\? allowed: average|sft\.lrr: unknown field; did you mean lr",
        ),
        (["sft.lr=-1"], r"sft\.lr=-1: .*greater than 0"),
        (["sft.lr=fast"], r"sft\.lr=fast: .*number"),
        (["rl.from=last"], r"allowed: base, final, best, all"),
        (["platform=cpuu"], r"did you mean cpu\? allowed: cpu, gpu"),
        (["sft.lr=1e-5,2e-5", "sft.lr=3e-5"], r"sft\.lr and sft\.lr overlap"),
        (["sft.lora={rank: 4}", "sft.lora.rank=8"], r"overlap"),
        (["sweep=[{sft.lr: 1}]", "sft.lr=2,3"], r"no row of its sweep has sft\.lr=2,3; allowed: sft\.lr=1$"),
        (["sweep=[{sft.lr: 1}]", "sft={lr: 2}"], r"sweep list; give each field once"),
        (["objective=dft"], r"objective=dft: objective is not in .* defaults; add the line '- objective: dft'"),
        (["sweep=3"], r"sweep=3: give a list of mappings, e\.g\. sweep=\[\{"),
        (["sweep=[1,2]"], r"sweep=\[1,2\]: give a list of mappings"),
        (["sweep=[{seed: 1}],[{seed: 2}]"], r"sweep=\.\.\.: it is one list"),
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
