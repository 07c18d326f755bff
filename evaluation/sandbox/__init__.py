"""Running model-written Python with as few rights as the kernel can take away from a process."""

from common.lazy import attributes

__all__, __getattr__ = attributes(
    __name__,
    {
        **dict.fromkeys(("Execution", "Limits", "Sandbox", "check_sandbox", "run_code"), "evaluation.sandbox.sandbox"),
        "extract_code": "evaluation.sandbox.extraction",
    },
)
