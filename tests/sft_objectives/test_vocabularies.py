"""A teacher whose head is padded to another width than the student's."""

import json

import pytest
import torch

from sft_objectives import Reference, fused_loss, load, token_losses
from sft_objectives.trainer.vocabularies import check_vocabulary

STUDENT, TEACHER = 151_936, 152_064  # Qwen2.5-Math 1.5B and 7B: one tokenizer, two paddings
CASES = [
    ("kd_decomposed", {}),  # PriFT's Table 7
    ("asft", {"source": "teacher"}),
    ("lp_sft", {"source": "teacher", "scope": "full"}),
    ("q_target", {"residual": "full"}),
    ("kd", {"top_k": 8}),
    ("prift_mass", {"source": "teacher"}),
    ("dft", {"source": "teacher"}),
]


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, other = normal(5, 4), normal(5, 4)
    head, wide = normal(STUDENT, 4), normal(TEACHER, 4)
    wide[STUDENT:] *= 3  # padding that has not been trained away: it takes most of the mass of some rows
    return hidden.requires_grad_(), head.requires_grad_(), other, wide, torch.tensor([3, 17, 150_000, 5, 151_642])


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_ids_beyond_the_student_s_get_no_probability(name, settings, problem):
    """Live heads are cut and the rest normalised anew, in both paths; also for what had been computed wide."""
    hidden, head, other, wide, labels = problem
    objective = load(name, **settings)
    narrow = Reference.from_logits(other @ wide[:STUDENT].T, labels, top_k=8)
    logits = hidden @ head.T
    wanted = token_losses(objective, logits, labels, reference=narrow)
    gradients = torch.autograd.grad(wanted.sum(), [hidden, head])
    wide_logits = other @ wide.T
    assert (wide_logits.argmax(-1) >= STUDENT).any()
    given = {
        "live": Reference(live=(other, wide, None)),
        "logits": Reference(logits=wide_logits),
        "computed": Reference.from_logits(wide_logits, labels, top_k=8),
    }
    for kind, reference in given.items():
        found = token_losses(objective, hidden @ head.T, labels, reference=reference)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12, msg=kind)
    value = fused_loss(
        objective, hidden, head, labels, mask=None, reference=given["live"], normalizer=1.0, chunk_size=2
    )
    assert value.item() == pytest.approx(wanted.sum().item(), rel=1e-10)
    for ours, true in zip(torch.autograd.grad(value, [hidden, head]), gradients, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-11)


def test_a_narrower_teacher_gives_the_rest_no_probability(problem):
    hidden, head, other, wide, labels = problem
    objective = load("kd_decomposed")
    narrow = Reference(live=(other, head.detach(), None))
    found = token_losses(objective, hidden @ wide.T, labels, reference=narrow)
    logits = torch.nn.functional.pad(other @ head.detach().T, (0, TEACHER - STUDENT), value=-torch.inf)
    wanted = token_losses(objective, hidden @ wide.T, labels, reference=Reference(logits=logits))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    value = fused_loss(objective, hidden, wide, labels, mask=None, reference=narrow, normalizer=1.0)
    assert value.item() == pytest.approx(wanted.sum().item(), rel=1e-10)


def test_cached_ids_beyond_the_student_s_become_padding():
    """Their mass goes to the others; what is left keeps its order, without gaps."""
    q = torch.tensor([[0.4, 0.3, 0.2], [0.5, 0.25, 0.125]])
    ids = torch.tensor([[7, 12, 1], [2, 3, 4]])
    cached = Reference(support_ids=ids, support_logprobs=q.log(), label_logprob=torch.tensor([-1.0, -1.0]))
    fitted = cached.fitted(10)
    assert fitted.support_ids.tolist() == [[7, 1, 0], [2, 3, 4]]
    torch.testing.assert_close(fitted.support_logprobs[0].exp(), torch.tensor([0.4 / 0.7, 0.2 / 0.7, 0.0]))
    assert torch.equal(fitted.support_logprobs[1], q[1].log())
    assert fitted.label_logprob.tolist() == pytest.approx([-1 - torch.tensor(0.7).log().item(), -1.0])
    assert cached.fitted(13) is cached


def model(directory, vocab, width, special=("<end>",)):
    """The files that say what a model's ids are."""
    directory.mkdir()
    added = [{"id": len(vocab) + i, "content": token, "special": True} for i, token in enumerate(special)]
    tokenizer = {"model": {"vocab": {token: i for i, token in enumerate(vocab)}}, "added_tokens": added}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "config.json").write_text(json.dumps({"vocab_size": width}))
    return directory


def test_padding_is_no_mismatch_and_another_vocabulary_is(tmp_path):
    student = model(tmp_path / "student", ["a", "b", "c"], 8)
    check_vocabulary(student, model(tmp_path / "wide", ["a", "b", "c"], 16), "the teacher")
    check_vocabulary(student, model(tmp_path / "renamed", ["a", "b", "c"], 8, special=("<stop>", "<x>")), "the teacher")
    other = model(tmp_path / "other", ["a", "c", "b"], 8)
    with pytest.raises(
        ValueError, match=r"differs from the student's in 2 ids .* 1: 'b' / 'c'.*the teacher must share"
    ):
        check_vocabulary(student, other, "the teacher")
    longer = model(tmp_path / "longer", ["a", "b", "c", "d", "e"], 8)
    with pytest.raises(ValueError, match=r"in 1 ids .*4: None / 'e'"):  # 3 is a special token of the student
        check_vocabulary(student, longer, "the teacher")
    (student / "tokenizer.json").unlink()
    check_vocabulary(student, other, "the teacher")
    with pytest.raises(ValueError, match=r"16 ids, the student has 8, and no tokenizer\.json says which are padding"):
        check_vocabulary(student, tmp_path / "wide", "the teacher")
