"""Entry point of the plug-in: ``register()`` for the current process, ``require_active()`` to check that it took.

verl loads (and never calls) the objects of its ``verl.plugins`` entry-point group and hides their errors, so importing
this module registers. Every process of a run reaches it in one of three ways: the installed entry point, the
environment variable ``VERL_USE_EXTERNAL_MODULES=verl_cpu.plugin`` (errors are loud), or an explicit import.
"""

import os


def requested() -> bool:
    """True where the environment selects this platform (``VERL_PLATFORM=cpu``)."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def register() -> None:
    """Register the CPU platform with verl and apply the patches; a no-op without ``VERL_PLATFORM=cpu``.

    May be called any number of times. Raises ``RuntimeError`` (one line) on versions of verl or vLLM that the patches
    were not written for.
    """
    if not requested():
        return
    from verl_cpu import patches

    patches.check_versions()
    import verl_cpu.platform  # noqa: F401  (registers itself)

    patches.apply()


def require_active() -> None:
    """Raise ``RuntimeError`` (one line, with the remedy) unless this process runs verl on the CPU platform.

    Our own mains call it before they hand over to verl, because verl swallows the errors of its plug-ins.
    """
    if not requested():
        raise RuntimeError(
            f"VERL_PLATFORM is {os.environ.get('VERL_PLATFORM')!r}, must be 'cpu': set it in the environment of every "
            "process before Python starts (platform=cpu does)"
        )
    register()
    from verl.plugin.platform import get_platform

    from verl_cpu.platform import PlatformCPU

    platform = get_platform()
    if not isinstance(platform, PlatformCPU):
        raise RuntimeError(
            f"verl already runs on platform {type(platform).__name__}, not on PlatformCPU: import verl_cpu.plugin "
            "before anything of verl"
        )


register()
