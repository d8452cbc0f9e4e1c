"""Where the code that a language model writes is run: real IPython kernels, driven over one framed stream.

The rest of the package meets `kernel.Kernel` and `environment.Environment` only. Everything under `guest` runs beside the
kernels, in another process, container or sandbox, and imports nothing from here.
"""
