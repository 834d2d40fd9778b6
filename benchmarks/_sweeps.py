"""Shapes that grow along one axis at a time."""

from benchmarks._shapes import Shape

BASE = Shape("base", 256, 8, 64, 32)
SIZES = {
    "T": (64, 128, 256, 512, 1024, 2048, 4096),
    "N": (1, 2, 4, 8, 16, 32, 64),
    "C": (16, 64, 256, 1024, 4096, 16384),
    "S": (4, 8, 16, 32, 64, 100),
}
"""At T = 256 no target may be much longer than 100 labels: repeats need a blank between them."""
RIVALS = ("torch", "optax")


def along(axis: str, quick: bool = False) -> list[Shape]:
    """Shapes of which `axis` alone differs; a quick sweep leaves out the largest."""
    sizes = SIZES[axis][: 4 if quick else None]
    return [BASE._replace(**{"name": f"{axis}={size}", axis: size}) for size in sizes]
