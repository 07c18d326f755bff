"""The limits within which token probabilities of vLLM and of the trainer count as those of one network."""

import pytest

from rl_stage.weight_check import Limits, limits_of


@pytest.mark.parametrize(
    ("platform", "dtype", "seen", "fine"),
    [
        ("cpu", "float32", {"mean": 2e-7, "largest": 3e-6, "correlation": 1.0}, True),
        ("cpu", "float32", {"mean": 2e-5, "largest": 3e-5, "correlation": 1.0}, False),
        ("cpu", "float32", {"mean": 2e-7, "largest": 2e-3, "correlation": 1.0}, False),
        ("gpu", "float32", {"mean": 4e-4, "largest": 0.05, "correlation": 0.99999}, True),
        ("gpu", "float32", {"mean": 4e-3, "largest": 0.05, "correlation": 0.9999}, False),
        ("gpu", "bfloat16", {"mean": 8e-3, "largest": 0.4, "correlation": 0.998}, True),
        ("gpu", "bfloat16", {"mean": 0.3, "largest": 1.0, "correlation": 0.02}, False),
        ("gpu", "bfloat16", {"mean": 0.02, "largest": 1.0, "correlation": 0.5}, False),
        # a saturated policy: nearly constant probabilities have no correlation to speak of
        ("gpu", "bfloat16", {"mean": 1e-4, "largest": 1e-3, "correlation": 0.3}, True),
        ("gpu", "bfloat16", {"mean": 1e-4, "largest": 1e-3, "correlation": float("nan")}, True),
        ("gpu", "bfloat16", {"mean": 0.02, "largest": 0.1, "correlation": float("nan")}, False),
        ("gpu", "bfloat16", {"mean": float("nan"), "largest": 0.1, "correlation": 1.0}, False),
    ],
)
def test_rounding_passes_and_other_weights_do_not(platform, dtype, seen, fine):
    limits = limits_of(platform, dtype)
    if fine:
        limits.check(3, **seen)
    else:
        with pytest.raises(RuntimeError, match=r"weight sync: at step 3 .* vLLM does not serve the trained weights"):
            limits.check(3, **seen)


def test_what_is_not_looked_at_is_not_named():
    with pytest.raises(RuntimeError) as error:
        Limits(0.1).check(1, mean=0.2, largest=0.3, correlation=0.4)
    assert "correlation" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match=r"correlation 0\.4000 \(least 0\.9\)"):
        Limits(0.1, correlation=0.9).check(1, mean=0.05, largest=0.3, correlation=0.4)


def test_a_low_rank_update_reaches_vllm_in_bfloat16_on_a_gpu():
    assert limits_of("gpu", "float32", lora=True) is limits_of("gpu", "bfloat16")
    assert limits_of("cpu", "float32", lora=True) is limits_of("cpu", "float32")
