"""Imported with verl in every process of a CPU run (`VERL_USE_EXTERNAL_MODULES`): keeps their start-up short."""

import sys

# transformers imports scikit-learn and scipy for assisted generation, which nobody here uses: a sixth of the imports of
# each of the processes of a run. To Python this means "not installed".
sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
