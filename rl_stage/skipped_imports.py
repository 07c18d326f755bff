"""Imported with verl in every process of a CPU run (`VERL_USE_EXTERNAL_MODULES`): keeps their start-up short."""

import sys

# transformers imports scikit-learn for assisted generation and vLLM scipy.signal for resampling audio, and nobody here
# does either: a fifth of the imports of each of a run's processes. To Python this means "not installed".
for name in ("sklearn", "scipy.signal"):
    sys.modules.setdefault(name, None)  # type: ignore[arg-type]
