"""The fifty Meta-World tasks: our sentence for each, and where the package's goal marker stays visible.

Meta-World draws goals as coloured spheres (MuJoCo sites). A marker is hidden where the sentence and the objects define
the goal (a drawer, a hoop, a hole) and shown where nothing else does (`reach`, `push`, `pick-place`, …). This table is
part of what a policy sees: change it and the rendering is another one.
"""

from __future__ import annotations

from dataclasses import dataclass

from wamkit.envs import choices_error

# Sites that the package uses as goal markers, in any task. Sites that belong to an object (the tip of a stick, the
# dot on a button) are part of the object and stay.
GOAL_SITES = frozenset(
    {
        "goal",
        "goal_lock",
        "goal_unlock",
        "goal_open",
        "goal_close",
        "goalPress",
        "goalPull",
        "mug_goal",
        "coffee_goal",
        "hand-goal-site",
        "pegTop",
        "hole",
    }
)


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """One task.

    Args:
        sentence: the instruction.
        shown: goal sites that stay visible because nothing else shows the goal; all other `GOAL_SITES` are hidden.
    """

    sentence: str
    shown: tuple[str, ...] = ()


_GOAL = ("goal",)

TASKS: dict[str, TaskInfo] = {
    "assembly-v3": TaskInfo(sentence="put the ring onto the peg"),
    "basketball-v3": TaskInfo(sentence="drop the basketball through the hoop"),
    "bin-picking-v3": TaskInfo(sentence="move the cube from one bin to the other bin"),
    "box-close-v3": TaskInfo(sentence="put the lid on the box"),
    "button-press-topdown-v3": TaskInfo(sentence="press the button down from above"),
    "button-press-topdown-wall-v3": TaskInfo(sentence="reach over the wall and press the button down from above"),
    "button-press-v3": TaskInfo(sentence="press the button"),
    "button-press-wall-v3": TaskInfo(sentence="reach around the wall and press the button"),
    "coffee-button-v3": TaskInfo(sentence="press the button on the coffee machine"),
    "coffee-pull-v3": TaskInfo(
        sentence="pull the mug away from the coffee machine to the green marker", shown=("mug_goal",)
    ),
    "coffee-push-v3": TaskInfo(sentence="push the mug under the coffee machine"),
    "dial-turn-v3": TaskInfo(sentence="turn the dial"),
    "disassemble-v3": TaskInfo(sentence="take the ring off the peg"),
    "door-close-v3": TaskInfo(sentence="close the door"),
    "door-lock-v3": TaskInfo(sentence="lock the door"),
    "door-open-v3": TaskInfo(sentence="open the door"),
    "door-unlock-v3": TaskInfo(sentence="unlock the door"),
    "hand-insert-v3": TaskInfo(sentence="put the gripper into the hole"),
    "drawer-close-v3": TaskInfo(sentence="close the drawer"),
    "drawer-open-v3": TaskInfo(sentence="open the drawer"),
    "faucet-open-v3": TaskInfo(sentence="turn on the faucet"),
    "faucet-close-v3": TaskInfo(sentence="turn off the faucet"),
    "hammer-v3": TaskInfo(sentence="hammer the nail into the wall"),
    "handle-press-side-v3": TaskInfo(sentence="press the handle down from the side"),
    "handle-press-v3": TaskInfo(sentence="press the handle down"),
    "handle-pull-side-v3": TaskInfo(sentence="pull the handle up from the side"),
    "handle-pull-v3": TaskInfo(sentence="pull the handle up"),
    "lever-pull-v3": TaskInfo(sentence="pull the lever up"),
    "peg-insert-side-v3": TaskInfo(sentence="insert the peg into the hole in the side of the block"),
    "pick-place-wall-v3": TaskInfo(
        sentence="pick up the puck, carry it over the wall and hold it at the blue marker", shown=_GOAL
    ),
    "pick-out-of-hole-v3": TaskInfo(
        sentence="pick the puck out of the hole and hold it at the blue marker", shown=_GOAL
    ),
    "reach-v3": TaskInfo(sentence="move the gripper to the red marker", shown=_GOAL),
    "push-back-v3": TaskInfo(sentence="pull the block back to the green marker", shown=_GOAL),
    "push-v3": TaskInfo(sentence="push the puck to the green marker", shown=_GOAL),
    "pick-place-v3": TaskInfo(sentence="pick up the puck and hold it at the blue marker", shown=_GOAL),
    "plate-slide-v3": TaskInfo(sentence="slide the plate into the cabinet"),
    "plate-slide-side-v3": TaskInfo(sentence="slide the plate sideways into the cabinet"),
    "plate-slide-back-v3": TaskInfo(sentence="slide the plate back out of the cabinet to the red marker", shown=_GOAL),
    "plate-slide-back-side-v3": TaskInfo(
        sentence="slide the plate sideways out of the cabinet to the red marker", shown=_GOAL
    ),
    "peg-unplug-side-v3": TaskInfo(sentence="pull the peg out of the socket"),
    "soccer-v3": TaskInfo(sentence="push the soccer ball into the goal"),
    "stick-push-v3": TaskInfo(sentence="grasp the stick and push the thermos to the green marker with it", shown=_GOAL),
    "stick-pull-v3": TaskInfo(sentence="grasp the stick and pull the thermos to the green marker with it", shown=_GOAL),
    "push-wall-v3": TaskInfo(sentence="push the puck around the wall to the green marker", shown=_GOAL),
    "reach-wall-v3": TaskInfo(sentence="move the gripper over the wall to the red marker", shown=_GOAL),
    "shelf-place-v3": TaskInfo(sentence="put the block onto the shelf"),
    "sweep-into-v3": TaskInfo(sentence="sweep the puck into the hole"),
    "sweep-v3": TaskInfo(sentence="sweep the puck off the table"),
    "window-open-v3": TaskInfo(sentence="open the window"),
    "window-close-v3": TaskInfo(sentence="close the window"),
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
        raise choices_error("Meta-World task", name, list(TASKS))
    return TASKS[name]
