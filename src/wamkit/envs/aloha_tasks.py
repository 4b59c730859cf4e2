"""The two tasks of gym-aloha and our sentence for each; loads no simulator."""

from __future__ import annotations

from dataclasses import dataclass

from wamkit.envs import choices_error


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """One task.

    Args:
        sentence: the instruction.
        scene: file of the package's scene.
        task: class in the package's `tasks.sim` that knows the reward.
        sampler: function in the package's `utils` that draws where objects start.
    """

    sentence: str
    scene: str
    task: str
    sampler: str


TASKS: dict[str, TaskInfo] = {
    "transfer-cube": TaskInfo(
        sentence="pick up the cube with the right arm and transfer it to the left arm",
        scene="bimanual_viperx_transfer_cube.xml",
        task="TransferCubeTask",
        sampler="sample_box_pose",
    ),
    "insertion": TaskInfo(
        sentence="insert the peg into the socket",
        scene="bimanual_viperx_insertion.xml",
        task="InsertionTask",
        sampler="sample_insertion_pose",
    ),
}


def task_sentences() -> dict[str, str]:
    """The sentence of every task."""
    return {name: info.sentence for name, info in TASKS.items()}


def task_info(name: str) -> TaskInfo:
    """The table's entry for a task id.

    Raises:
        ValueError: no such task; the message guesses which was meant and lists all.
    """
    if name not in TASKS:
        raise choices_error("ALOHA task", name, list(TASKS))
    return TASKS[name]
