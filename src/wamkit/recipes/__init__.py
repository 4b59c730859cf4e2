"""The table of recipes: functions that return one complete `Run`; importing it loads no torch."""

from __future__ import annotations

from collections.abc import Callable

from wamkit.recipes.run import Run
from wamkit.recipes.wav_published import wav_dualarm, wav_libero
from wamkit.recipes.wav_small import debug, wav_libero_small, wav_metaworld, wav_metaworld_many
from wamkit.recipes.worldvla_published import rynnvla_libero, worldvla_libero
from wamkit.recipes.worldvla_small import worldvla_debug, worldvla_metaworld

RECIPES: dict[str, Callable[[], Run]] = {
    "wav-metaworld": wav_metaworld,
    "wav-metaworld-many": wav_metaworld_many,
    "wav-libero-small": wav_libero_small,
    "wav-libero": wav_libero,
    "wav-dualarm": wav_dualarm,
    "debug": debug,
    "worldvla-metaworld": worldvla_metaworld,
    "worldvla-libero": worldvla_libero,
    "rynnvla-libero": rynnvla_libero,
    "worldvla-debug": worldvla_debug,
}
