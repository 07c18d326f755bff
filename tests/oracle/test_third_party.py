"""Against code nobody here wrote: TRL's and axolotl's fine-tuning losses, Liger-Kernel's and TRL's distillation."""

import math
from types import SimpleNamespace

import pytest
import torch
from axolotl.monkeypatch.loss.eaft import eaft_loss
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from trl.experimental.gkd.gkd_trainer import GKDTrainer

import sft_objectives
from sft_objectives import Reference


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """TRL's SFT trainer on a tiny model, for two losses."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {f"w{index}": index for index in range(62)} | {"<eos>": 62, "<pad>": 63}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="<eos>", pad_token="<pad>"
    )

    def make(loss_type):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.5,
            pad_token_id=63,
            eos_token_id=62,
        )
        arguments = SFTConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")), loss_type=loss_type, report_to=[], use_cpu=True, bf16=False
        )
        data = Dataset.from_dict({"input_ids": [[1, 2, 3]], "labels": [[1, 2, 3]]})
        return SFTTrainer(LlamaForCausalLM(config), args=arguments, train_dataset=data, processing_class=tokenizer)

    return make


@pytest.mark.parametrize(("loss_type", "name"), [("dft", "dft"), ("nll", "sft")])
def test_trl_fine_tuning_losses(loss_type, name, trainer):
    """Loss and the gradients of all parameters of TRL's own compute_loss."""
    trl = trainer(loss_type)
    model = trl.model.train()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 62, (3, 9), generator=generator)
    labels = ids.clone()
    labels[0, :4] = labels[1, :2] = labels[2, 7:] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    theirs = trl.compute_loss(model, dict(inputs))
    theirs.backward()
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()

    logits = model(input_ids=ids).logits[:, :-1].reshape(-1, 64)
    targets = labels[:, 1:].flatten()
    mask = targets != -100
    losses = sft_objectives.token_losses(sft_objectives.load(name), logits, targets, mask=mask)
    ours = losses.sum() / mask.sum()
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("vocab_size", "top_k", "exponent"), [(64, 20, 1.0), (64, 5, 2.0), (12, 20, 0.5)])
def test_axolotl_eaft(vocab_size, top_k, exponent):
    """Its loss is the preset eaft_repo_axolotl, the paper's times (ln k)^alpha; k may exceed the vocabulary.

    It adds 1e-10 inside the logarithm of the entropy, which changes an entropy by less than 2e-9.
    """
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 9, vocab_size, generator=generator)).requires_grad_()
    labels = torch.randint(0, vocab_size, (2, 9), generator=generator)
    labels[0, :4] = labels[1, 7:] = -100
    theirs = eaft_loss(SimpleNamespace(logits=logits), labels, alpha=exponent, k=top_k)
    (their_gradient,) = torch.autograd.grad(theirs, logits)

    targets = labels[:, 1:].flatten()
    mask = targets != -100
    for settings, factor in (({"divide_by": 1.0}, 1.0), ({}, math.log(top_k) ** exponent)):
        objective = sft_objectives.load("eaft", top_k=top_k, exponent=exponent, **settings)
        losses = sft_objectives.token_losses(objective, logits[:, :-1].reshape(-1, vocab_size), targets, mask=mask)
        ours = factor * losses.sum() / mask.sum()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], their_gradient, rtol=1e-5, atol=1e-7)
    whole = eaft_loss(SimpleNamespace(logits=logits), labels, num_items_in_batch=mask.sum(), alpha=exponent, k=top_k)
    torch.testing.assert_close(whole, theirs)


def heads(dtype=torch.float32):
    """student hidden, student head, teacher hidden, teacher head, labels with ignored rows."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((12, 8), (40, 8), (12, 10), (40, 10))
    ]
    labels = torch.randint(0, 40, (12,), generator=generator)
    labels[2:5] = -100
    return *tensors, labels


@pytest.mark.parametrize("weight", [0.2, 0.8, 1.0])
def test_liger_distillation(weight):
    """Its generalised JSD at beta = 0 is KL(teacher || student): our kd on the whole vocabulary, less the entropy."""
    hidden, head, teacher_hidden, teacher_head, labels = heads()
    head.requires_grad_()
    liger = LigerFusedLinearJSDLoss(weight_hard_loss=1 - weight, weight_soft_loss=weight, beta=0.0, compiled=False)
    theirs = liger(hidden, head, teacher_hidden, teacher_head, labels)
    (their_gradient,) = torch.autograd.grad(theirs, head)

    mask = labels >= 0
    teacher = Reference.from_logits(teacher_hidden @ teacher_head.T, labels, top_k=40)
    for ours in (
        sft_objectives.token_losses(
            sft_objectives.load("kd", weight=weight), hidden @ head.T, labels, mask=mask, reference=teacher
        ).sum()
        / mask.sum(),
        sft_objectives.fused_loss(
            sft_objectives.load("kd", weight=weight), hidden, head, labels, mask=mask, reference=teacher, normalizer=9.0
        ),
    ):
        entropy = teacher.get("entropy")[mask].sum() / mask.sum()
        torch.testing.assert_close(ours - weight * entropy, theirs, rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(ours, head)
        torch.testing.assert_close(gradient, their_gradient, rtol=1e-4, atol=1e-5)


def test_trl_divergence():
    """TRL's generalised JSD at beta = 0 is the KL of sft_kl, divided by the same count; in float64, to 1e-12."""
    hidden, head, teacher_hidden, teacher_head, labels = heads(torch.float64)
    logits, mask = (hidden @ head.T).requires_grad_(), labels >= 0
    theirs = GKDTrainer.generalized_jsd_loss(
        logits[None], (teacher_hidden @ teacher_head.T)[None], labels[None], beta=0.0, num_items_in_batch=mask.sum()
    )
    base = Reference.from_logits(teacher_hidden @ teacher_head.T, labels, top_k=8)
    per_token = [
        sft_objectives.token_losses(sft_objectives.load(name, **settings), logits, labels, mask=mask, reference=base)
        for name, settings in (("sft_kl", {"weight": 1.0}), ("sft", {}))
    ]
    ours = (per_token[0] - per_token[1]).sum() / mask.sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_liger_jsd_between_its_ends_is_no_objective_of_the_papers():
    """The difference at beta = 0.5: a mixture stands where the papers put the student."""
    hidden, head, teacher_hidden, teacher_head, labels = heads()
    liger = [
        LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)(
            hidden, head, teacher_hidden, teacher_head, labels
        )
        for beta in (0.0, 0.5)
    ]
    log_p, log_q = (hidden @ head.T).log_softmax(-1), (teacher_hidden @ teacher_head.T).log_softmax(-1)
    middle = (0.5 * log_p.exp() + 0.5 * log_q.exp()).log()
    jsd = 0.5 * ((log_p - middle) * log_p.exp() + (log_q - middle) * log_q.exp()).sum(-1)
    torch.testing.assert_close(liger[1], jsd[labels >= 0].mean(), rtol=1e-4, atol=1e-5)
    assert liger[0] > 2 * liger[1]
