"""What a run looks like: views that read `trace` and `events`, and know nothing of models or kernels."""
