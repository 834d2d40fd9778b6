"""The recursion of `_both_ends` as kernels, one for each kind of accelerator."""
