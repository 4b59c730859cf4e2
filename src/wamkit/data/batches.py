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
    """

    loader: WindowLoader
    needs_future: bool
    color_jitter: ColorJitter
    device: torch.device | str

    def batch(self, step: int) -> Batch:
        """This process's rows of batch number `step`: a function of the loader's seed, the step and the rows."""
        size = self.loader.batch_size
        rows = rows_of_this_process(size)
        batch = self.loader.batch(step, need_future=self.needs_future, rows=rows)
        if not self.color_jitter.is_on:
            return batch
        draws = TrainingDraws(key=(self.loader.seed, step), rows=rows, num_rows=size)
        return jittered(batch.to(self.device), self.color_jitter, draws)
