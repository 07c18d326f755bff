"""Identities between objectives: each is a line of the specification, checked in float64 on loss or gradient."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from common.distributions import window_support
from sft_objectives import Reference, load

EQUAL_GRADIENTS = [
    (("prift_mass", {"threshold": 0.0}), ("sft", {})),
    (("talr", {"w_min": 1.0}), ("sft", {})),
    (("beyond_log", {"exponent": 0.0}), ("sft", {})),
    (("beyond_log", {"exponent": 1.0}), ("dft", {})),
    (("beyond_log", {"exponent": 0.4}), ("talr", {"temperature": 2.5, "w_min": 0.0})),
    (("kd", {"weight": 0.0}), ("sft", {})),
    (("asft", {"weight": 0.0}), ("dft", {})),
    (("sft_kl", {"weight": 0.0}), ("sft", {})),
    (("sft_k3", {"weight": 0.0}), ("sft", {})),
    (("lp_sft", {"weight": 0.0}), ("sft", {})),
    (("sed_sft", {"weight": 0.0}), ("sft", {})),
    (("label_smoothing", {"weight": 0.0}), ("sft", {})),
    (("gem", {"temperature": 1.0}), ("sft", {})),
    (("gem", {"weight": 0.0}), ("sft", {})),
    (("token_selection", {"fraction": 1.0}), ("sft", {})),
    (("profit", {"threshold": 0.0}), ("sft", {})),
    (("eaft", {"exponent": 0.0}), ("sft", {})),
    (("dft", {"source": "base"}), ("prift_prob", {})),
    (("talr", {"source": "base", "temperature": 1.0, "w_min": 0.0}), ("prift_prob", {})),
    (("kd_decomposed", {"weight": 0.0}), ("prift_prob", {"source": "teacher"})),
    (("psft", {"clip": 1e6}), ("beyond_log", {"exponent": 1.0}), "over_old"),
    (("lp_sft", {"divergence": "ce"}), ("lp_sft", {})),
    (("q_target", {}), ("target_sft", {})),
    (("q_target", {"residual": "self"}), ("dft", {})),
    (("q_target", {"rule": "sft", "residual": "truncated", "residual_weight": 4.0}), ("kd", {}), "kd_scale"),
]


@pytest.mark.parametrize("case", EQUAL_GRADIENTS, ids=lambda case: f"{case[0][0]}-{case[1][0]}")
def test_equal_gradients(case, batch):
    (name, settings), (other, other_settings), *scale = case
    gradient, expected = batch.gradient(load(name, **settings)), batch.gradient(load(other, **other_settings))
    if scale == ["over_old"]:
        expected = expected / batch.references["old"].label_logprob.exp().unsqueeze(-1)
    if scale == ["kd_scale"]:
        gradient = gradient * 0.2
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.fixture
def at_reference(batch):
    """A batch whose references are the student itself, over the whole vocabulary."""
    own = Reference.from_logits(batch.logits, batch.labels, top_k=50)
    batch.references = dict.fromkeys(batch.references, own)
    return batch


@pytest.mark.parametrize(
    ("name", "settings", "other"),
    [
        ("asft", {}, "dft"),
        ("sft_kl", {}, "sft"),
        ("sft_kl", {"estimator": "topk", "top_k": 7}, "sft"),
        ("sft_k3", {}, "sft"),
        ("prift_prob", {}, "dft"),
        ("lp_sft", {}, "sft"),
        ("lp_sft", {"remove_label": False}, "sft"),
        ("lp_sft", {"scope": "full"}, "sft"),
        ("psft", {}, "sft"),
        ("psft", {"inner_updates": 0}, "sft"),
        ("iw_sft", {}, "sft"),
        ("target_sft", {"exponent": 1.0}, "dft"),
        ("kd", {"weight": 1.0}, None),
    ],
)
def test_gradients_where_the_reference_is_the_student(name, settings, other, at_reference):
    gradient = at_reference.gradient(load(name, **settings))
    expected = at_reference.gradient(load(other)) if other else torch.zeros_like(gradient)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_lp_sft_adds_nothing_at_the_base_checkpoint(at_reference):
    losses = at_reference.losses(load("lp_sft"))
    torch.testing.assert_close(losses, at_reference.losses(load("sft")), rtol=0, atol=1e-14)
    unnormalised = at_reference.gradient(load("lp_sft", normalize=False))
    assert (unnormalised - at_reference.gradient(load("sft"))).abs().max() > 1e-2


def test_the_power_family_is_continuous_at_zero(make_batch):
    """In float32, where 1 - p^a would be all rounding."""
    batch = make_batch(torch.float32)
    near, at = (batch.losses(load("beyond_log", exponent=exponent)) for exponent in (1e-7, 0.0))
    torch.testing.assert_close(near, at, rtol=1e-5, atol=0)


def test_gem_is_cross_entropy_at_another_temperature(batch):
    beta = 0.7
    scaled = torch.nn.functional.cross_entropy(batch.logits / beta, batch.labels, reduction="none")
    expected = beta * torch.autograd.grad((scaled * batch.mask).sum(), batch.logits)[0]
    torch.testing.assert_close(batch.gradient(load("gem", temperature=beta)), expected, rtol=1e-12, atol=1e-14)


def test_logsigmoid_gem_pulls_the_label_by_what_it_pushes_away(batch):
    batch.mask[:] = True
    with torch.no_grad():
        w = (batch.logits / 0.7).softmax(-1)
        w = w * (0.01 * (batch.logits - batch.logits.gather(1, batch.labels[:, None]))).sigmoid()
        expected = w - w.sum(-1, keepdim=True) * torch.nn.functional.one_hot(batch.labels, 50)
    torch.testing.assert_close(batch.gradient(load("gem", variant="logsigmoid")), expected, rtol=1e-12, atol=1e-14)


def test_induced_target_of_dft(batch):
    batch.mask[:] = True
    p = batch.logits.detach().softmax(-1)
    p_y = p.gather(1, batch.labels[:, None])
    expected = ((1 - p_y) * p).scatter(1, batch.labels[:, None], 2 * p_y - p_y**2)
    torch.testing.assert_close(p - batch.gradient(load("dft")), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("settings", [{}, {"exponent": 0.2}, {"residual_form": "product", "exponent": 0.2}])
def test_target_sft_moves_toward_its_target(settings, batch):
    batch.mask[:] = True
    with torch.no_grad():
        p = batch.logits.softmax(-1)
        p_y = p.gather(1, batch.labels[:, None])
        teacher = batch.references["teacher"]
        ids, q = teacher.support_ids, teacher.support_logprobs.exp()
        eta = settings.get("exponent", 0.5)
        shape = p.gather(1, ids) ** (1.0 if "residual_form" in settings else 1 - eta) * q**eta
        residual = torch.zeros_like(p).scatter(1, ids, shape / shape.sum(-1, keepdim=True))
        target = ((1 - p_y) * residual).scatter_add(1, batch.labels[:, None], p_y)
    torch.testing.assert_close(batch.gradient(load("target_sft", **settings)), p - target, rtol=1e-12, atol=1e-14)


def test_target_sft_without_the_teacher_is_dft_on_the_whole_vocabulary(at_reference):
    found = at_reference.gradient(load("target_sft", exponent=0.0))
    torch.testing.assert_close(found, at_reference.gradient(load("dft")), rtol=1e-12, atol=1e-14)


def test_all_of_decomposed_distillation_is_distillation(batch):
    teacher = Reference.from_logits(batch.references["teacher"].logits, batch.labels, top_k=50)
    whole = batch.losses(load("kd", weight=1.0), reference=teacher)
    for estimator in ("full", "topk"):
        found = batch.losses(load("kd_decomposed", weight=1.0, estimator=estimator), reference=teacher)
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-14)


def test_the_tail_bucket_is_exact_when_one_word_is_left(batch):
    base = Reference.from_logits(batch.references["base"].logits, batch.labels, top_k=50)
    full = batch.gradient(load("sft_kl"), reference=base)
    for top_k in (49, 50):
        found = batch.gradient(load("sft_kl", estimator="topk", top_k=top_k), reference=base)
        torch.testing.assert_close(found, full, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"clip": 0.05}])
def test_psft_is_the_clipped_ratio_of_the_paper(settings, batch):
    epsilon = settings.get("clip", 0.2)
    old = batch.references["old"].label_logprob
    r = (batch.logits.log_softmax(-1).gather(1, batch.labels[:, None]).squeeze(1) - old).exp()
    assert ((r > 1 + epsilon) & batch.mask).any() and ((r < 1 - epsilon) & batch.mask).any()
    expected = -torch.minimum(r, r.clamp(1 - epsilon, 1 + epsilon)) * batch.mask
    torch.testing.assert_close(batch.losses(load("psft", **settings)), expected, rtol=1e-12, atol=1e-14)


def weights_by_hand(batch):
    """Token weights of the papers' formulas, on every row, from the student's and the base's distributions."""
    log_p, base = batch.logits.detach().log_softmax(-1), batch.references["base"]
    log_q = base.logits.log_softmax(-1)
    entropy, base_entropy = (-(x.exp() * x).sum(-1) for x in (log_p, log_q))
    of_label = lambda x: x.gather(1, batch.labels[:, None]).squeeze(1)  # noqa: E731
    log_p_y, log_q_y = of_label(log_p), of_label(log_q)
    top = log_p.topk(20).values.softmax(-1)
    top_entropy = -(top * top.log()).sum(-1)
    ratio = log_p_y - log_q_y
    lengths = batch.sequence_lengths.tolist()
    parts = [x[m] for x, m in zip(ratio.split(lengths), batch.mask.split(lengths), strict=True)]
    per_sequence = lambda f: torch.cat([f(x).expand(n) for x, n in zip(parts, lengths, strict=True)])  # noqa: E731
    return {
        "eaft": ({}, top_entropy / math.log(20)),
        "eaft power": ({"exponent": 2.0, "divide_by": 3.0}, (top_entropy / 3) ** 2),
        "idft": ({}, log_p_y.exp() ** torch.exp(-(log_p_y + entropy).clamp(-1, 1))),
        "idft base": ({"source": "base"}, log_q_y.exp() ** torch.exp(-(log_q_y + base_entropy).clamp(-1, 1))),
        "idft repo": ({"variant": "repo"}, log_p_y.exp() ** torch.exp(-(log_p_y + entropy)).clamp(0.1, 2)),
        "iw_sft": ({}, per_sequence(lambda x: x.sum().exp())),
        "iw_sft repo": ({"variant": "repo"}, per_sequence(lambda x: x.mean().exp().clamp(max=16))),
        "iw_sft token": ({"variant": "repo_token"}, ratio.exp().clamp(0.2, 1.8)),
        "profit": ({}, log_p_y.exp() >= 0.1),
        "critical_token": ({}, batch.columns["critical"]),
        "prift_mass": ({}, (log_q.exp() * (log_q <= log_q_y[:, None])).sum(-1) >= 0.5),
    }


@pytest.mark.parametrize("case", [
    "eaft", "eaft power", "idft", "idft base", "idft repo", "iw_sft", "iw_sft repo", "iw_sft token", "profit",
    "critical_token", "prift_mass",
])  # fmt: skip
def test_token_weights(case, batch):
    settings, weight = weights_by_hand(batch)[case]
    expected = weight.to(torch.float64)[:, None] * batch.gradient(load("sft"))
    torch.testing.assert_close(batch.gradient(load(case.split()[0], **settings)), expected, rtol=1e-11, atol=1e-14)


def test_k3_is_continued_linearly(batch):
    losses = batch.losses(load("sft_k3", weight=1.0, max_log_ratio=0.1))
    log_r = batch.references["base"].label_logprob + batch.losses(load("sft"))
    beyond = batch.mask & (log_r > 0.1)
    assert beyond.any()
    expected = math.exp(0.1) * (0.9 + log_r) - 1 - log_r - batch.references["base"].label_logprob + log_r
    torch.testing.assert_close(losses[beyond], expected[beyond], rtol=1e-12, atol=1e-14)


def test_k3_gradient(batch):
    log_q_y = batch.references["base"].label_logprob
    r = (log_q_y - batch.logits.detach().log_softmax(-1).gather(1, batch.labels[:, None]).squeeze(1)).exp()
    expected = (1 + 0.3 * (r - 1))[:, None] * batch.gradient(load("sft"))
    torch.testing.assert_close(batch.gradient(load("sft_k3", weight=0.3)), expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("order", "statistic"), [("top", "prob"), ("bottom", "prob"), ("top", "entropy")])
def test_a_fraction_of_the_batch_is_selected(order, statistic, batch):
    log_p = batch.logits.detach().log_softmax(-1)
    score = log_p.gather(1, batch.labels[:, None]).squeeze(1) if statistic == "prob" else -(log_p.exp() * log_p).sum(-1)
    score = score.masked_fill(~batch.mask, -math.inf if order == "top" else math.inf)
    count = math.ceil(0.3 * int(batch.mask.sum()))
    kept = score.topk(count, largest=order == "top").indices
    losses = batch.losses(load("token_selection", fraction=0.3, order=order, statistic=statistic))
    assert sorted(losses.nonzero().squeeze(1).tolist()) == sorted(kept.tolist())


def test_label_smoothing_and_sed_sft_by_hand(batch):
    log_p = batch.logits.log_softmax(-1)
    log_p_y = log_p.gather(1, batch.labels[:, None]).squeeze(1)
    smooth = -(0.8 * log_p_y + 0.2 / 50 * log_p.sum(-1)) * batch.mask
    room = log_p.exp().topk(2).values.sum(-1) < 0.6
    assert (room & batch.mask).any() and (~room & batch.mask).any()
    sed = (-log_p_y + 0.7 * room.double() * (log_p_y.exp() - 0.5) ** 2) * batch.mask
    for objective, losses in [
        (load("label_smoothing", weight=0.2), smooth),
        (load("sed_sft", weight=0.7, threshold=0.6), sed),
    ]:
        expected = torch.autograd.grad(losses.sum(), batch.logits, retain_graph=True)[0]
        torch.testing.assert_close(batch.losses(objective), losses, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(batch.gradient(objective), expected, rtol=1e-11, atol=1e-14)


def test_talr_takes_the_lower_median_of_the_sequences(batch):
    nll = batch.losses(load("sft")).detach().split(batch.sequence_lengths.tolist())
    counts = [int(part.sum()) for part in batch.mask.split(batch.sequence_lengths.tolist())]
    temperature = sorted(float(part.sum()) / count for part, count in zip(nll, counts, strict=True))[1]
    expected = batch.gradient(load("talr", temperature=temperature))
    torch.testing.assert_close(batch.gradient(load("talr")), expected, rtol=1e-12, atol=1e-14)


def test_flow_weights_average_to_one_over_the_data_set(batch):
    nll = -batch.references["base"].label_logprob
    ratio = (batch.losses(load("flow")) / batch.losses(load("sft"))).detach()
    groups = zip(*(x.split(batch.sequence_lengths.tolist()) for x in (nll, ratio, batch.mask)), strict=True)
    means, weights = zip(*((float(loss[m].mean()), float(w[m].mean())) for loss, w, m in groups), strict=True)
    temperature = sorted(means)[1]
    assert math.isclose(sum(weights), 4)
    assert math.isclose(weights[0] / weights[1], math.exp((means[1] - means[0]) / temperature))


def test_sed_threshold_is_the_quantile_of_the_base(batch):
    base = batch.references["base"]
    mass = base.support_logprobs[:, :2].exp().sum(-1).numpy()
    scalars = {"support_logprobs": base.support_logprobs, "mask": batch.mask}
    found = load("sed_sft").dataset_constants(scalars)["threshold"]
    assert math.isclose(found, np.quantile(mass, 0.3), rel_tol=1e-12)
    found = load("sed_sft", positions="supervised", threshold_top_k=10).dataset_constants(scalars)["threshold"]
    mass = base.support_logprobs[batch.mask, :10].exp().sum(-1).numpy()
    assert math.isclose(found, np.quantile(mass, 0.3), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("ceil_n1", "label", "expected"),
    [
        (1, 0, []),  # S = {y}
        (1, 1, [0, 2]),  # S' = {0}; 1 is the label, so 2 is next
        (1, 3, [0, 1]),
        (2, 0, [1, 2]),
        (2, 5, [0, 1]),
        (3, 1, [0, 2]),
        (4, 9, [0, 1, 2, 3]),
        (30, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_preservation_set(ceil_n1, label, expected):
    reference = Reference.from_logits(-torch.arange(40.0)[None] / 10, torch.tensor([label]), top_k=20)
    object.__setattr__(reference, "ceil_n1", torch.tensor([ceil_n1]))
    preserved = load("lp_sft").preservation_set(reference, torch.tensor([label]))
    assert reference.support_ids[preserved].tolist() == expected


def r_min(n1: float, window: int = 30) -> float:
    """LP-SFT eq. 11 at m = window: one word of probability q, the others equal; its minimiser has m = window."""

    def entropy(q: float) -> float:
        rest = (1 - q) / (window - 1)
        return -sum(x * math.log(x) for x in (q, *[rest] * (window - 1)) if x > 0)

    q = brentq(lambda q: entropy(q) - math.log(n1), 1 / window, 1 - 1e-12, xtol=1e-14)
    return 1 / (n1 * (q**2 + (1 - q) ** 2 / (window - 1)))


def test_no_distribution_falls_below_the_envelope():
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-1, 1, 400)[:, None]
    n1, n2 = window_support(torch.randn(400, 30, generator=generator) * scale)
    assert all(float(b / a) >= r_min(float(a)) - 1e-8 for a, b in zip(n1, n2, strict=True) if 1.001 < a < 29.99)
    assert math.isclose(min(r_min(x) for x in np.linspace(9, 10, 101)), 0.3566, abs_tol=5e-5)
    assert math.isclose(r_min(9.46), 0.3566, abs_tol=5e-5)


def test_printed_plateaus():
    """Uniform plateaus of LP-SFT's tables 3 and 4: k = 2 and k = 3."""
    logits = torch.full((2, 30), -40.0)
    logits[0, :2] = 0
    logits[1, :3] = 0
    n1, n2 = window_support(logits)
    torch.testing.assert_close(n1, torch.tensor([2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(n2 / n1, torch.ones(2, dtype=torch.float64))
