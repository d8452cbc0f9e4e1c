"""What runs beside the kernels: supervisor, kernel parent and the REPL's helpers.

This package is shipped as plain files into containers and sandboxes, so it imports nothing of rlm_jupyter outside itself.
It needs pyzmq and ipykernel; `frames`, `wire`, `output`, `processes` and `repl` need the standard library only.
"""
