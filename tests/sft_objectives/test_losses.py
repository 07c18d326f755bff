import dataclasses
from collections import Counter

import pytest
import torch

import sft_objectives
from sft_objectives import BatchConstants, Reference, Step, load, token_losses
from sft_objectives.fused.chunk_student import ChunkStudent
from sft_objectives.inputs import resolve_constants
from sft_objectives.student import DenseStudent

VARIANTS = [
    *((name, {}) for name in sft_objectives.names()),
    ("talr", {"source": "base"}),
    ("talr", {"normalize": True}),
    ("eaft", {"source": "base"}),
    ("idft", {"variant": "repo", "source": "ema"}),
    ("prift_mass", {"variant": "repo"}),
    ("prift_mass", {"source": "online"}),
    ("token_selection", {"statistic": "entropy", "order": "bottom", "normalizer": "kept"}),
    ("token_selection", {"source": "base", "fraction": 0.3}),
    ("iw_sft", {"variant": "repo"}),
    ("iw_sft", {"variant": "repo_token"}),
    ("iw_sft", {"numerator": "teacher"}),
    ("beyond_log", {"threshold": 0.1, "normalizer": "kept"}),
    ("beyond_log", {"threshold": 0.1, "keep": "below"}),
    ("sed_sft", {"mask": False}),
    ("psft", {"inner_updates": 0}),
    ("kd_decomposed", {"estimator": "topk"}),
    ("sft_kl", {"estimator": "topk"}),
    ("asft", {"estimator": "topk", "top_k": 5}),
    ("gem", {"variant": "logsigmoid"}),
    ("lp_sft", {"remove_label": False}),
    ("lp_sft", {"normalize": False}),
    ("lp_sft", {"scope": "full"}),
    ("lp_sft", {"schedule": "fixed", "rounding": "round", "divergence": "ce"}),
    ("target_sft", {"residual_weight": 0.5, "residual_form": "product"}),
    ("q_target", {"rule": "talr", "residual": "full"}),
    ("q_target", {"rule": "prift_mass", "residual": "uniform", "residual_rule": "eaft"}),
    ("q_target", {"rule": "sft", "residual": "sharpened", "residual_weight": -0.3}),
    ("q_target", {"residual": "self"}),
]
ids = [f"{name}-{'-'.join(map(str, settings.values()))}" for name, settings in VARIANTS]
every_variant = pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=ids)


@every_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masked_rows_are_exactly_zero_whatever_they_hold(name, settings, dtype, make_batch):
    batch, objective = make_batch(dtype), load(name, **settings)
    before, gradient = batch.losses(objective), batch.gradient(objective)
    assert (before[~batch.mask] == 0).all() and (gradient[~batch.mask] == 0).all()
    assert before.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert before.isfinite().all() and gradient.isfinite().all()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype]
    assert gradient.sum(-1).abs().max() < tolerance, "Q = p - dL/dz sums to one"
    with torch.no_grad():
        batch.logits[~batch.mask] = torch.nan
    batch.labels[~batch.mask] = -100
    torch.testing.assert_close(batch.losses(objective), before, rtol=0, atol=0)
    torch.testing.assert_close(batch.gradient(objective), gradient, rtol=0, atol=0)


@every_variant
def test_nothing_supervised_gives_zeros(name, settings, batch):
    batch.mask[:] = False
    objective = load(name, **settings)
    assert (batch.losses(objective) == 0).all() and (batch.gradient(objective) == 0).all()


@every_variant
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_extreme_logits_give_finite_losses_and_gradients(name, settings, scale, make_batch):
    batch = make_batch(torch.float32, scale=scale)
    objective = load(name, **settings)
    assert batch.losses(objective).isfinite().all()
    assert batch.gradient(objective).isfinite().all()


@every_variant
def test_one_row_and_a_vocabulary_smaller_than_k(name, settings, make_batch):
    batch = make_batch(vocab_size=6, lengths=(1,), top_k=64)
    batch.mask[:] = True
    objective = load(name, **settings)
    assert batch.losses(objective).isfinite().all() and batch.gradient(objective).isfinite().all()


def in_parts(objective, batch, parts):
    """The gradient of the global batch whose micro-batches `parts` (row indices) follow the integrator's protocol."""
    needs = objective.needs
    everywhere = torch.repeat_interleave(torch.arange(4), batch.sequence_lengths)
    references = lambda part: {s: batch.references[s].rows(part) for s in needs.references}  # noqa: E731
    columns = lambda part: {c: batch.columns[c][part] for c in needs.columns}  # noqa: E731
    base = batch.references["base"]
    dataset = {}
    if needs.dataset:
        cache = {f: base.get(f) for f in needs.dataset.fields} | {"mask": batch.mask, "sequence": everywhere}
        dataset = objective.dataset_constants(cache)
    parts = [part[batch.mask[part]] for part in parts]
    constants = BatchConstants()
    if needs.batch:
        scalars = []
        for part in parts:
            student = DenseStudent(batch.logits[part], batch.labels[part]) if needs.student_first else None
            mask = {"mask": torch.ones(len(part)), "sequence": everywhere[part]}
            scalars.append(objective.token_scalars(Step(student, references(part), columns(part))) | mask)
        together = {key: torch.cat([s[key] for s in scalars]) for key in scalars[0]}
        constants = objective.batch_constants(together, lambda local: local)
    constants = constants.merged(dataset)
    normalizer = float(batch.mask.sum()) if constants.normalizer is None else constants.normalizer
    gradient, done = torch.zeros_like(batch.logits), 0
    for part in parts:
        student = DenseStudent(batch.logits[part], batch.labels[part])
        here = constants.rows(slice(done, done + len(part)))
        loss = objective.loss(Step(student, references(part), columns(part), here)).sum() / normalizer
        gradient += torch.autograd.grad(loss, batch.logits)[0]
        done += len(part)
    return gradient


@every_variant
def test_the_gradient_does_not_depend_on_the_split(name, settings, batch):
    objective, rows = load(name, **settings), torch.arange(len(batch.labels))
    whole = in_parts(objective, batch, [rows])
    torch.testing.assert_close(
        in_parts(objective, batch, [rows[:9], rows[9:13], rows[13:]]), whole, rtol=1e-12, atol=1e-15
    )
    # a micro-batch, or a rank, in which nothing is supervised
    torch.testing.assert_close(in_parts(objective, batch, [rows[:0], rows]), whole, rtol=1e-12, atol=1e-15)
    # chunks that cut sequences, as a fused kernel or sequence parallelism does
    torch.testing.assert_close(in_parts(objective, batch, list(rows.split(5))), whole, rtol=1e-12, atol=1e-15)
    if not load(name, **settings).needs.batch:
        torch.testing.assert_close(batch.gradient(objective) / batch.mask.sum(), whole, rtol=1e-12, atol=1e-15)


def test_ranks_that_reduce_agree_with_one_process(batch):
    """Two ranks whose `reduce` concatenates both parts give the constants of one process."""
    for name in ("talr", "token_selection", "iw_sft", "flow"):
        objective = load(name)
        sequence = torch.repeat_interleave(torch.arange(4), batch.sequence_lengths)
        student = DenseStudent(batch.logits, batch.labels)
        scalars = objective.token_scalars(Step(student, batch.references)) | {"mask": batch.mask, "sequence": sequence}
        whole = objective.batch_constants(scalars, lambda local: local)
        halves = [{k: v[:13] for k, v in scalars.items()}, {k: v[13:] for k, v in scalars.items()}]
        sent = [[], []]
        for half, box in zip(halves, sent, strict=True):
            objective.batch_constants(half, lambda local, box=box: box.append(local) or local)
        gathered = [torch.cat(pair) for pair in zip(*sent, strict=True)]
        replies = [iter(gathered), iter(gathered)]
        found = [objective.batch_constants(h, lambda _, r=r: next(r)) for h, r in zip(halves, replies, strict=True)]
        assert found[0].values == found[1].values == whole.values
        for key, tensor in whole.tokens.items():
            assert torch.equal(torch.cat([f.tokens[key] for f in found])[batch.mask], tensor[batch.mask])


@every_variant
def test_diagnostics_are_detached_rows(name, settings, batch):
    objective = load(name, **settings)
    batch.mask[:] = True
    student = DenseStudent(batch.logits, batch.labels)
    constants = resolve_constants(
        objective,
        {"threshold": 0.9, "temperature": 1.0, "mean_weight": 1.0},
        Step(student, batch.references, batch.columns),
        torch.repeat_interleave(torch.arange(4), batch.sequence_lengths),
        torch.arange(len(batch.labels)),
    )
    logged = {}
    objective.loss(Step(student, batch.references, batch.columns, constants, logged=logged))
    for tensor in logged.values():
        assert tensor.shape == batch.labels.shape and not tensor.requires_grad and tensor.isfinite().all()


def test_one_reference_serves_every_source(batch):
    objective = load("q_target", rule="eaft", rule_settings={"source": "base"})
    base = batch.references["base"]
    both = batch.losses(objective, reference={"base": base, "teacher": base})
    torch.testing.assert_close(batch.losses(objective, reference=base), both, rtol=0, atol=0)


def test_a_live_reference_is_as_good_as_logits(batch):
    logits = batch.references["base"].logits
    live = Reference(live=(torch.eye(len(logits), dtype=logits.dtype), logits.T.contiguous(), None))
    for name in ("lp_sft", "asft", "prift_mass", "idft", "target_sft"):
        settings = {"source": "base"} if name == "idft" else {}
        expected = batch.losses(load(name, **settings), reference=Reference.from_logits(logits, batch.labels, top_k=64))
        torch.testing.assert_close(batch.losses(load(name, **settings), reference=live), expected)


def truncated(reference: Reference) -> Reference:
    return dataclasses.replace(reference, logits=None)


@pytest.mark.parametrize(
    ("name", "settings", "changes", "words"),
    [
        ("dft", {"source": "base"}, {"reference": None}, ["'base'", "given: none", "label_logprob"]),
        ("kd", {}, {"reference": {}}, ["'teacher'"]),
        ("talr", {}, {"sequence_lengths": None}, ["sequence_lengths"]),
        ("flow", {}, {"sequence_lengths": None}, ["sequence_lengths"]),
        ("critical_token", {}, {"columns": None}, ["critical", "training data"]),
        ("sed_sft", {}, {"reference": None}, ["constants", "settings"]),
        ("talr", {}, {"sequence_lengths": torch.tensor([3, 4])}, ["sum to 7", "34"]),
        ("lp_sft", {"top_k": 30}, {"truncate": True}, ["30 ids", "present: 20", "top_k"]),
        ("asft", {}, {"truncate": True}, ["logits", "live", "estimator=topk"]),
        ("sft_kl", {}, {"truncate": True}, ["logits", "live", "estimator=topk"]),
        ("lp_sft", {"scope": "full"}, {"truncate": True}, ["logits", "live", "scope=local"]),
        ("prift_mass", {"variant": "repo"}, {"truncate": True}, ["logits", "live"]),
        (
            "prift_mass",
            {},
            {"reference": Reference(label_logprob=torch.zeros(34))},
            ["label_mass", "present: label_logprob"],
        ),
        ("prift_mass", {}, {"reference": Reference(label_mass=torch.zeros(33))}, ["label_mass", "34 rows"]),
        ("sft", {}, {"mask": torch.ones(33)}, ["mask", "34 rows"]),
    ],
)
def test_missing_or_unfit_inputs_are_one_line_errors(name, settings, changes, words, batch):
    if changes.pop("truncate", False):
        changes["reference"] = {source: truncated(reference) for source, reference in batch.references.items()}
    with pytest.raises(ValueError) as error:
        batch.losses(load(name, **settings), **changes)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_labels_outside_the_vocabulary_are_refused_where_supervised():
    with pytest.raises(ValueError, match="-100 to 1; allowed: 0 to 2"):
        token_losses(load("sft"), torch.zeros(2, 3), torch.tensor([-100, 1]))


def test_settings_fix_data_set_constants(batch):
    fixed = batch.losses(load("sed_sft", threshold=0.7), reference=None)
    torch.testing.assert_close(batch.losses(load("sed_sft"), constants={"threshold": 0.7}), fixed, rtol=0, atol=0)


class Counting(DenseStudent):
    """Counts the evaluations of each statistic."""

    def __init__(self, logits, labels):
        super().__init__(logits, labels)
        self.count, self._inside = Counter(), False

    def _counted(self, name, evaluate):
        """What `evaluate` gives; statistics that another one is made of do not count."""
        if self._inside:
            return evaluate()
        self.count[name] += 1
        self._inside = True
        try:
            return evaluate()
        finally:
            self._inside = False

    def log_p(self, ids):
        name = "log_p_label" if torch.equal(ids, self.labels.unsqueeze(-1)) else "log_p"
        return self._counted(name, lambda: super(Counting, self).log_p(ids))

    def expected_log_p(self, weights):
        return self._counted("expected_log_p", lambda: super(Counting, self).expected_log_p(weights))

    def log_p_outside(self, ids):
        return self._counted("log_p_outside", lambda: super(Counting, self).log_p_outside(ids))

    def statistic(self, of_chunk):
        return self._counted("statistic", lambda: super(Counting, self).statistic(of_chunk))

    def top_k(self, k):
        known = k in self._top
        return super().top_k(k) if known else self._counted(f"top_{k}", lambda: super(Counting, self).top_k(k))


@every_variant
def test_each_statistic_is_computed_once_and_a_diagnostic_computes_none(name, settings, batch):
    objective = load(name, **settings)
    batch.mask[:] = True
    sequence, rows = torch.repeat_interleave(torch.arange(4), batch.sequence_lengths), torch.arange(len(batch.labels))
    given = {"threshold": 0.9, "temperature": 1.0, "mean_weight": 1.0}
    first = Step(DenseStudent(batch.logits, batch.labels), batch.references, batch.columns)
    constants = resolve_constants(objective, given, first, sequence, rows)
    student, silent, logged = Counting(batch.logits, batch.labels), Counting(batch.logits, batch.labels), {}
    losses = objective.loss(Step(student, batch.references, batch.columns, constants, logged=logged))
    assert student.count and max(student.count.values()) == 1, student.count
    assert torch.equal(objective.loss(Step(silent, batch.references, batch.columns, constants)), losses)
    assert silent.count == student.count


def test_the_student_keeps_its_statistics(batch):
    for student in (
        Counting(batch.logits, batch.labels),
        ChunkStudent(batch.logits.detach().clone(), batch.labels, whole=False, differentiable=True),
    ):
        assert student.top_k(3)[0] is student.top_k(3)[0] and student.entropy is student.entropy
        assert student.mean_log_p is student.mean_log_p and student.log_p_label is student.log_p_label
