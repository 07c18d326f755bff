"""The verl plug-in that trains and generates without a GPU: same trainers, logical devices, gloo and vLLM's CPU build.

Active only where the environment says ``VERL_PLATFORM=cpu``; importing this package imports nothing else.
"""
