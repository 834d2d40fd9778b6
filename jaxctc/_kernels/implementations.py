"""Give XLA's loops and the kernels of each platform one interface: two functions of a prepared batch."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
from jaxtyping import Array

from jaxctc import _platforms
from jaxctc._forward_backward import bidirectional, gpu_loops
from jaxctc._forward_backward.bidirectional import Posterior, Scatter, unchanged
from jaxctc._forward_backward.prepared import PreparedBatch
from jaxctc._forward_backward.rows import by_direction, emissions_in_rows
from jaxctc._forward_backward.scaled import Scaled
from jaxctc._forward_backward.scaled_emissions import ScaledEmissions
from jaxctc._lattice import indexing
from jaxctc._mesh import mapped_over
from jaxctc._sizes import Index

_T = TypeVar("_T")


class Implementation(Protocol):
    """An implementation of the bidirectional recursion."""

    def likelihood(self, batch: PreparedBatch) -> Scaled:
        """Return the likelihood of each target, (N,), from emissions that are relative to each frame's best score."""

    def posterior(
        self, batch: PreparedBatch, *, every_blank: bool = False, scatter: Scatter = unchanged
    ) -> tuple[Scaled, Posterior]:
        """Return the likelihoods, and the posterior, which is unspecified before step `batch.start`.

        `scatter` computes what the caller wants from the labels' posterior. `every_blank` asks for the posterior of
        each blank as well.
        """


class Loops:
    """The loops that XLA compiles for every platform, as a CPU runs them fastest."""

    def likelihood(self, batch: PreparedBatch) -> Scaled:
        def run(emissions: ScaledEmissions, start: Index) -> Scaled:
            return bidirectional.likelihood(emissions, start, batch.segment, batch.initial)

        return self._run(run, batch)

    def posterior(
        self, batch: PreparedBatch, *, every_blank: bool = False, scatter: Scatter = unchanged
    ) -> tuple[Scaled, Posterior]:
        # A matrix product is no part of a kernel.
        stored = batch.emissions.scores is not None
        inside, outside = (unchanged, scatter) if stored else (scatter, unchanged)

        def run(emissions: ScaledEmissions, start: Index) -> tuple[Scaled, Posterior]:
            return bidirectional.posterior(
                emissions, batch.segment, start, batch.initial, every_blank=every_blank, scatter=inside
            )

        value, found = self._run(run, batch)
        return value, found._replace(label=outside(found.label))

    @staticmethod
    def _run(run: Callable[[ScaledEmissions, Index], _T], batch: PreparedBatch) -> _T:
        """Return what `run` returns; where the scores are stored, and so nothing is gathered, it is one kernel."""
        emissions, start = batch.emissions, batch.start
        if emissions.scores is None or batch.initial is not None:
            return run(emissions, start)
        known = isinstance(start, int)

        def loops(scores: Array, blank: Scaled, skip: Array, target_lengths: Array, start: Index = start) -> _T:
            same = emissions._replace(scores=scores, blank=blank, skip=skip, target_lengths=target_lengths)
            return run(same, start)

        def by_rows() -> _T:
            rows = emissions_in_rows(emissions)
            used = rows.scores, rows.blank, rows.skip, rows.target_lengths
            found = _platforms.in_one_kernel(loops)(*used, *(() if known else (start,)))
            return jax.tree.map(lambda x: x if x.ndim == 1 else by_direction(x), found)

        return indexing.on_tpu(lambda: run(emissions, start), by_rows)


class GpuLoops:
    """The loops that XLA compiles for GPUs."""

    def likelihood(self, batch: PreparedBatch) -> Scaled:
        return gpu_loops.likelihood(batch.emissions, batch.segment)

    def posterior(
        self, batch: PreparedBatch, *, every_blank: bool = False, scatter: Scatter = unchanged
    ) -> tuple[Scaled, Posterior]:
        return gpu_loops.posterior(batch.emissions, batch.segment, every_blank=every_blank, scatter=scatter)


class KernelModule(Protocol):
    """What a module of kernels has."""

    PRECISION: Any
    """The precision with which `scatter` multiplies the posterior by a matrix of ones and zeros."""

    def likelihood(self, emissions: ScaledEmissions, start: Index) -> Scaled:
        """Return the likelihood of each target, (N,). No step before `start` reads a frame within a length.

        `emissions` has the scores of all steps stored; each direction has M steps.
        """

    def posterior(
        self, emissions: ScaledEmissions, size: int, start: Index, *, every_blank: bool
    ) -> tuple[Scaled, Posterior]:
        """Return the likelihoods and the posterior: of the labels after each step, and of the blanks after each step.

        `size` is M, the most steps that a segment of the kernel can have. What it returns for steps before `start` is
        not read.
        """


class Kernels(NamedTuple):
    """The kernels of one platform."""

    module: KernelModule
    sequence_axis: str | tuple[str, ...] | None
    """The mesh axis that the sequences are sharded over, where it is known (see `mapped_over`)."""

    def likelihood(self, batch: PreparedBatch) -> Scaled:
        return mapped_over(self.sequence_axis, self.module.likelihood)(batch.emissions, batch.start)

    def posterior(
        self, batch: PreparedBatch, *, every_blank: bool = False, scatter: Scatter = unchanged
    ) -> tuple[Scaled, Posterior]:
        def run(emissions: ScaledEmissions, start: Index) -> tuple[Scaled, Posterior]:
            return self.module.posterior(emissions, emissions.steps, start, every_blank=every_blank)

        value, found = mapped_over(self.sequence_axis, run)(batch.emissions, batch.start)
        return value, found._replace(label=scatter(found.label, self.module.PRECISION))
