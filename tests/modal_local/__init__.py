"""A local stand-in for Modal's control plane; `plane.LocalModal` is what tests use. README.md tells what it emulates."""
