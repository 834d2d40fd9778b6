"""Compare the implementations with the reference, and time them, on the devices that JAX has."""
