"""The fused path against the dense one: values, gradients, statistics, odd shapes, refusals."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

import sft_objectives
from sft_objectives import BatchConstants, Reference, fused_loss, load, token_losses
from sft_objectives.fused import chunk_size, chunks
from sft_objectives.fused.chunk_student import ChunkStudent, largest

VARIANTS = [
    *((name, {}) for name in sft_objectives.names()),
    ("talr", {"normalize": True}),
    ("talr", {"source": "base"}),
    ("idft", {"variant": "repo"}),
    ("prift_mass", {"source": "online"}),
    ("prift_mass", {"variant": "repo"}),
    ("token_selection", {"statistic": "entropy", "order": "bottom", "normalizer": "kept"}),
    ("iw_sft", {"variant": "repo_token"}),
    ("beyond_log", {"exponent": 0.5, "threshold": 0.1, "normalizer": "kept"}),
    ("kd_decomposed", {"estimator": "topk"}),
    ("sft_kl", {"estimator": "topk"}),
    ("asft", {"estimator": "topk", "top_k": 5}),
    ("gem", {"variant": "logsigmoid"}),
    ("lp_sft", {"normalize": False}),
    ("lp_sft", {"scope": "full"}),
    ("target_sft", {"residual_weight": 0.5, "residual_form": "product"}),
    ("q_target", {"rule": "talr", "residual": "full"}),
    ("q_target", {"rule": "sft", "residual": "sharpened", "residual_weight": -0.3}),
    ("q_target", {"residual": "self"}),
]
every_variant = pytest.mark.parametrize(
    ("name", "settings"), VARIANTS, ids=[f"{name}-{'-'.join(map(str, s.values()))}" for name, s in VARIANTS]
)
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@dataclass
class Problem:
    """21 packed positions of 4 sequences, an odd vocabulary, a head with bias, live and cached references."""

    hidden: torch.Tensor
    head: torch.Tensor
    bias: torch.Tensor | None
    labels: torch.Tensor
    given: dict

    @property
    def inputs(self) -> list[torch.Tensor]:
        return [x for x in (self.hidden, self.head, self.bias) if x is not None]

    def dense(self, objective, scale=None, **changes):
        """The scalar and the gradients of the inputs, through whole logits."""
        given = {**self.given, **changes}
        logits = torch.nn.functional.linear(self.hidden, self.head, self.bias)
        losses = token_losses(objective, logits, self.labels, **given)
        value = (losses if scale is None else losses * scale).sum() / 7
        return value, torch.autograd.grad(value, self.inputs), losses.detach()

    def fused(self, objective, scale=None, normalizer=7, **changes):
        given = {**self.given, "chunk_size": 4, **changes}
        value, statistics = fused_loss(
            objective, self.hidden, self.head, self.labels, head_bias=self.bias, token_scale=scale,
            normalizer=normalizer, return_statistics=True, **given,
        )  # fmt: skip
        return value, torch.autograd.grad(value, self.inputs), statistics

    def to(self, dtype) -> Problem:
        def cast(x):
            return None if x is None else x.detach().to(dtype).requires_grad_()

        references = {
            source: replace(r, live=(r.live[0].to(dtype), r.live[1].to(dtype), None))
            for source, r in self.given["reference"].items()
        }
        given = {**self.given, "reference": references}
        return Problem(cast(self.hidden), cast(self.head), cast(self.bias), self.labels, given)


def build(vocab_size=203, lengths=(6, 2, 9, 4), width=8, scale=1.0, seed=0, bias=True) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)

    def normal(*shape):
        # of few bits, so that bfloat16 holds the same problem
        return torch.randn(*shape, generator=generator).bfloat16().double()

    hidden, head = normal(n, width), normal(vocab_size, width) * scale
    logits = hidden @ head.t()
    likely = logits.topk(min(5, vocab_size)).indices.gather(1, torch.randint(0, 5, (n, 1), generator=generator))
    other = torch.randint(0, vocab_size, (n,), generator=generator)
    labels = torch.where(torch.rand(n, generator=generator) < 0.7, likely.squeeze(-1), other)
    references = {}
    for source in ("base", "teacher", "checkpoint", "ema", "old"):
        live = (hidden + (0.3 * normal(n, width)).bfloat16().double(), head, None)
        whole = Reference.from_logits(live[0] @ live[1].t(), labels, top_k=20)
        references[source] = replace(whole, logits=None, live=live)
    mask = torch.rand(n, generator=generator) < 0.8
    mask[0], mask[-1] = False, True
    given = {
        "mask": mask,
        "sequence_lengths": torch.tensor(lengths),
        "reference": references,
        "columns": {"critical": (torch.rand(n, generator=generator) < 0.5).float()},
    }
    return Problem(
        hidden.requires_grad_(),
        head.requires_grad_(),
        normal(vocab_size).requires_grad_() if bias else None,
        labels,
        given,
    )


@pytest.fixture
def problem() -> Problem:
    return build()


def scale_of(problem: Problem) -> torch.Tensor:
    return torch.linspace(-1, 2, len(problem.labels), dtype=torch.float64)


@every_variant
def test_float64_equals_the_dense_path_for_uneven_upstream_gradients(name, settings, problem):
    objective, scale = load(name, **settings), scale_of(problem)
    value, gradients, losses = problem.dense(objective, scale)
    found, found_gradients, statistics = problem.fused(objective, scale)
    torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(statistics["loss"], losses, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    assert (found_gradients[0][~problem.given["mask"]] == 0).all()


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_no_larger_than_the_dense_path_s(name, settings, dtype, problem):
    objective, scale = load(name, **settings), scale_of(problem)
    lower = problem.to(dtype)
    exact = problem.dense(objective, scale)
    naive, found = lower.dense(objective, scale), lower.fused(objective, scale)
    epsilon = torch.finfo(dtype).eps
    for mine, theirs, true in zip(found[1], naive[1], exact[1], strict=True):
        error, allowed = (mine - true).abs().max(), (theirs - true).abs().max()
        assert error <= 1.5 * allowed + 2 * epsilon * true.abs().max()
        assert mine.dtype == dtype


@pytest.mark.parametrize("size", [1, 3, 21, 1000, None])
@pytest.mark.parametrize("name", ["sft", "lp_sft", "gem", "talr", "flow", "sft_kl"])
def test_the_chunk_size_does_not_matter(name, size, problem):
    objective = load(name)
    expected, found = problem.dense(objective), problem.fused(objective, chunk_size=size)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [{"lengths": (1,)}, {"vocab_size": 6}, {"vocab_size": 1027}, {"bias": False}])
@pytest.mark.parametrize("name", ["eaft", "target_sft", "label_smoothing", "sft_kl", "idft"])
def test_odd_shapes(name, shape):
    problem, objective = build(**shape), load(name)
    problem.given["mask"][:] = True
    expected, found = problem.dense(objective), problem.fused(objective)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@every_variant
def test_nothing_supervised_gives_zeros(name, settings, problem):
    problem.given["mask"][:] = False
    value, gradients, statistics = problem.fused(load(name, **settings), normalizer=1)
    assert value == 0 and all((gradient == 0).all() for gradient in gradients)
    assert all((values == 0).all() for values in statistics.values())


@pytest.mark.parametrize("gap", [0.0, 10.0, 60.0, 80.0, 300.0])
def test_the_mass_outside_and_its_gradient_are_exact_however_small_it_is(gap):
    z = torch.tensor([[gap, 0.0, -1.0, 2.0], [0.5, 0.0, -1.0, 2.0]])
    ids, scale = torch.tensor([[0, 0], [0, 3]]), torch.tensor([1.0, -2.0])
    exact = z.double().requires_grad_()
    outside = exact.scatter(1, ids, -torch.inf).logsumexp(-1) - exact.logsumexp(-1)
    expected = torch.autograd.grad((scale * outside).sum(), exact)[0]
    student = ChunkStudent(z.clone(), torch.tensor([1, 1]), whole=False, differentiable=True)
    found = student.log_p_outside(ids)
    torch.testing.assert_close(found.double(), outside, rtol=1e-6, atol=1e-6)
    gradient = student.overwrite_with_gradient(found, scale).double()
    rounding = 1e-7 * (10 + gap)  # of log-probabilities of that size
    torch.testing.assert_close(gradient, expected, rtol=rounding, atol=1e-7)


@pytest.mark.parametrize("name", ["sft", "eaft", "idft", "gem", "lp_sft", "sft_kl", "label_smoothing", "target_sft"])
def test_extreme_logits_give_finite_gradients(name):
    problem = build(scale=3000.0).to(torch.float32)
    _, gradients, statistics = problem.fused(load(name))
    assert all(gradient.isfinite().all() for gradient in gradients) and statistics["loss"].isfinite().all()


def test_impossible_words_count_nothing(problem):
    problem.given["mask"][:] = True
    allowed = torch.ones(203, dtype=torch.bool)
    allowed[[5, 50, 202]] = False
    allowed[problem.labels] = True
    bias = problem.bias.detach().masked_fill(~allowed, -torch.inf)
    for name in ("sft", "idft", "gem"):
        objective = load(name)
        value, statistics = fused_loss(
            objective, problem.hidden, problem.head, problem.labels, head_bias=bias,
            **problem.given, normalizer=1, return_statistics=True,
        )  # fmt: skip
        gradient = torch.autograd.grad(value, problem.hidden)[0]
        expected = token_losses(
            objective, (problem.hidden @ problem.head.t() + bias)[:, allowed],
            allowed.cumsum(0)[problem.labels] - 1, **problem.given,
        )  # fmt: skip
        torch.testing.assert_close(statistics["loss"], expected.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), problem.hidden)[0])


def test_given_constants_are_used_and_save_the_first_pass(problem, monkeypatch):
    objective = load("talr")
    assert objective.needs.batch
    monkeypatch.setattr(chunks.ChunkedRows, "constants_of_batch", lambda *_: pytest.fail("first pass"))
    constants = BatchConstants(values={"temperature": 0.5})
    found = problem.fused(objective, constants=constants)
    expected = problem.dense(load("talr", temperature=0.5))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=0)


def test_without_normalizer_the_constants_or_the_count_divide(problem):
    count = problem.given["mask"].sum()
    torch.testing.assert_close(
        problem.fused(load("sft"), normalizer=None)[0], problem.fused(load("sft"), normalizer=1)[0] / count
    )
    objective = load("talr", normalize=True)
    value, _, statistics = problem.fused(objective, normalizer=None)
    weights = statistics["diagnostic_weight"].sum()
    torch.testing.assert_close(value, statistics["loss"].sum() / weights, rtol=1e-10, atol=0)


def test_statistics_are_those_of_the_logits(problem):
    *_, statistics = problem.fused(load("dft"))
    log_p = torch.nn.functional.linear(*problem.inputs).log_softmax(-1).detach()
    mask = problem.given["mask"]
    label = log_p.gather(1, problem.labels[:, None]).squeeze(1)
    torch.testing.assert_close(statistics["cross_entropy"], -label * mask)
    torch.testing.assert_close(statistics["entropy"], -(log_p.exp() * log_p).sum(-1) * mask)
    torch.testing.assert_close(statistics["diagnostic_weight"], label.exp() * mask)
    assert not any(values.requires_grad for values in statistics.values())


def test_only_what_is_trained_gets_a_gradient_and_upstream_scales_it(problem):
    objective = load("sft")
    expected = problem.dense(objective)[1][0]
    given = {**problem.given, "normalizer": 7, "head_bias": problem.bias.detach()}
    value = fused_loss(objective, problem.hidden, problem.head.detach(), problem.labels, **given)
    (-3 * value).backward(retain_graph=True)
    torch.testing.assert_close(problem.hidden.grad, -3 * expected)
    with pytest.raises(RuntimeError, match="twice"):
        value.backward()
    with torch.no_grad():
        assert not fused_loss(objective, problem.hidden, problem.head, problem.labels, **given).requires_grad


def test_autocast_does_not_change_the_result(problem):
    lower = problem.to(torch.float32)
    expected = lower.fused(load("sft"))
    with torch.autocast("cpu", torch.bfloat16):
        found = lower.fused(load("sft"))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1][1], expected[1][1])


def test_float32_accumulation_of_the_head_s_gradient_is_nearer():
    problem = build(lengths=(60,)).to(torch.bfloat16)

    def gradient(size, on):
        return problem.fused(load("sft"), chunk_size=size, accumulate_float32=on)[1][1].double()

    at_once = gradient(60, True)
    assert (gradient(1, True) - at_once).norm() < 0.5 * (gradient(1, False) - at_once).norm()


@pytest.mark.parametrize(("n", "vocab_size", "k"), [(3, 203, 5), (5, 1291, 2), (2, 2560, 5), (1, 4, 4), (0, 2000, 3)])
def test_largest_equals_topk(n, vocab_size, k):
    z = torch.randn(n, vocab_size, generator=torch.Generator().manual_seed(k))
    values, places = largest(z, k)
    assert torch.equal(values, z.topk(k).values) and torch.equal(z.gather(1, places), values)


def test_the_chunk_shrinks_with_free_memory(monkeypatch):
    hidden = torch.zeros(1, 2560)
    sizes = []
    for free in (2**40, 2**31, 2**28, 0):
        monkeypatch.setattr(chunk_size, "_free_bytes", lambda device, free=free: free)
        sizes.append(chunk_size.default_chunk_size(load("sft"), hidden, 152_000, False))
    assert sizes == [2048, 512, 64, 16]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(21, 9)}, "allowed: .N, D. and .V, D."),
        ({"labels": torch.zeros(20, dtype=torch.int64)}, "labels"),
        ({"labels": torch.full((21,), 203)}, "mask the others"),
        ({"hidden": torch.zeros(21, 8, dtype=torch.bfloat16)}, "dtypes"),
        ({"head_bias": torch.zeros(3)}, "head_bias"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"mask": torch.ones(3)}, "mask has shape"),
        ({"token_scale": torch.ones(3)}, "token_scale has shape"),
        ({"reference": None}, "needs reference 'base'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes, message, problem):
    given = {
        "hidden": problem.hidden,
        "head_weight": problem.head,
        "labels": problem.labels,
        "normalizer": 1,
        **problem.given,
    }
    with pytest.raises(ValueError, match=message):
        fused_loss(load("lp_sft"), **{**given, **changes})
