"""What runs beside the kernels: supervisor, kernel parent, broker, and the helpers that are put into each kernel.

This package is shipped as plain files into containers and sandboxes, so it imports nothing of rlm_jupyter outside itself.
It needs pyzmq and ipykernel. `frames`, `fields`, `wire`, `output` and `processes` need the standard library only, and so does
what `sources` puts into kernels.
"""
