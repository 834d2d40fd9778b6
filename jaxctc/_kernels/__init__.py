"""The bidirectional recursion as Pallas kernels for TPUs and GPUs, and the choice of an implementation."""
