"""The recursion of `bidirectional` as kernels, one for each kind of accelerator."""
