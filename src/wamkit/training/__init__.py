"""Training: one trainer for every model family.

A recipe gives `TrainStage`s (`wamkit.training.stage`, which imports no torch); `wamkit.training.trainer.train` runs
them in order, saves atomically, and resumes so that nothing shows it was ever interrupted.
"""

from wamkit.training.stage import TrainStage

__all__ = ["TrainStage"]
