"""CUDA graphs: recorded work of fixed addresses, replayed by one call.

All graphs share one pool of memory, because one runs at a time.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP_RUNS = 2  # the first compiles, the second finds everything in place


class CudaGraph:
    """One recorded piece of work and its output's place."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor, work: Callable[[], Tensor]) -> None:
        # The work is kept for the tensors that it holds: a graph knows their addresses alone.
        self._graph, self._output, self._work = graph, output, work

    def replay(self) -> Tensor:
        """Do the work again; its output, valid until any graph of the recorder is replayed."""
        self._graph.replay()
        return self._output


class CudaRecorder:
    """Records graphs on the device's current stream."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Tensor]) -> CudaGraph:
        """Run `work` until all is compiled, then record it."""
        # Libraries allocate their workspaces in the first runs; on a stream of its own, as torch asks.
        warm_up = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(WARM_UP_RUNS):
                work()
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        # Other threads may copy meanwhile: only this one's calls can break the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = work()
        return CudaGraph(graph, output, work)
