"""The batches of one training stage, as one process sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wamkit.data.color_jitter import jittered
from wamkit.data.image_settings import ColorJitter
from wamkit.data.loader import WindowLoader
from wamkit.draws import TrainingDraws
from wamkit.parallel import rows_of_this_process
from wamkit.types import Batch


@dataclass(frozen=True, kw_only=True)
class StageBatches:
    """One stage's batches out of a loader: of each, the rows of this process, with their colours changed at random.

    Args:
        loader: seeded for the stage.
        needs_future: whether the stage reads future frames.
        color_jitter: how far colours change.
        device: where they are changed.
        num_processes: processes that draw batches (`prefetch.prefetched`); 0 for none.
    """

    loader: WindowLoader
    needs_future: bool
    color_jitter: ColorJitter
    device: torch.device | str
    num_processes: int = 0

    def batch(self, step: int) -> Batch:
        """This process's rows of batch number `step`: a function of the loader's seed, the step and the rows."""
        return self.finish(step, self.draw(step))

    def draw(self, step: int) -> Batch:
        """The rows with their colours as they are, on the CPU."""
        rows = rows_of_this_process(self.loader.batch_size)
        return self.loader.batch(step, need_future=self.needs_future, rows=rows)

    def finish(self, step: int, drawn: Batch) -> Batch:
        """What `draw` gave, with its colours changed."""
        if not self.color_jitter.is_on:
            return drawn
        size = self.loader.batch_size
        draws = TrainingDraws(key=(self.loader.seed, step), rows=rows_of_this_process(size), num_rows=size)
        return jittered(drawn.to(self.device), self.color_jitter, draws)
