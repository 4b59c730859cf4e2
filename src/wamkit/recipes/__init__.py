"""The table of recipes: functions that return one complete `Run`; importing it loads no torch."""

from __future__ import annotations

from collections.abc import Callable

from wamkit.recipes.run import Run
from wamkit.recipes.wav_metaworld import debug, wav_metaworld, wav_metaworld_many

RECIPES: dict[str, Callable[[], Run]] = {
    "wav-metaworld": wav_metaworld,
    "wav-metaworld-many": wav_metaworld_many,
    "debug": debug,
}
