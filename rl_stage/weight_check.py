"""Does vLLM serve the weights that are trained? Told from the token probabilities of rollout and trainer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How far token probabilities of one network may differ between vLLM and the trainer.

    mean: of the absolute differences over a step's tokens. largest: of them, None: not looked at. correlation: least
    Pearson correlation, looked at where the mean is above a tenth of its limit (a saturated policy has nearly constant
    probabilities, whose correlation says nothing); None: not looked at.
    """

    mean: float
    largest: float | None = None
    correlation: float | None = None

    def check(self, step: int, *, mean: float, largest: float, correlation: float) -> None:
        """Raise RuntimeError (one line) if the differences of a step are beyond the limits."""
        beyond = not mean < self.mean or (self.largest is not None and not largest < self.largest)
        unlike = self.correlation is not None and mean > self.mean / 10 and not correlation > self.correlation
        if beyond or unlike:
            most = "" if self.largest is None else f" (limit {self.largest})"
            alike = "" if self.correlation is None else f", correlation {correlation:.4f} (least {self.correlation})"
            raise RuntimeError(
                f"weight sync: at step {step} token probabilities of vLLM and of the trainer differ by {mean:.2g} on "
                f"average (limit {self.mean}) and by {largest:.2g} at most{most}{alike}: vLLM does not serve the "
                "trained weights"
            )


# On a CPU both compute the same fp32 network and only sum in different orders: probabilities differ by some 1e-7 on
# average and, in a peaked model, by up to 1e-5 at a single token. On a GPU vLLM's attention multiplies float32 in tf32
# (10 bits) and bfloat16 has 8: single tokens may differ by much, so the mean and the correlation judge. Weights that
# were never loaded, or a head that was left behind, show in the mean as tenths; in bfloat16 one small update that got
# lost would not.
_LIMITS = {
    ("cpu", "float32"): Limits(1e-5, largest=1e-3),
    ("gpu", "float32"): Limits(2e-3, correlation=0.999),
    ("gpu", "bfloat16"): Limits(0.05, correlation=0.9),
}


def limits_of(platform: str, dtype: str, *, lora: bool = False) -> Limits:
    """The limits for a platform (cpu, gpu) and a dtype of the weights.

    lora: a low-rank update is trained, which verl rounds to bfloat16 on its way to vLLM, but for the CPU platform.
    """
    return _LIMITS[platform, "bfloat16" if lora and platform == "gpu" else dtype]
