"""How frames become what a model sees: sizes, crops, colours. Only settings: importing this loads no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """How far colours are changed at random in training; all 0 changes nothing.

    Args:
        brightness: pixels are multiplied by a number of [1 - b, 1 + b].
        contrast: the distance of pixels from their image's mean gray is multiplied by a number of [1 - c, 1 + c].
        saturation: the distance of pixels from their own gray is multiplied by a number of [1 - s, 1 + s].
        hue: hues are turned by a number of [-h, h] of the whole circle; at most 0.5.

    Source: WAV 3.4 of the specification; `published` holds its numbers.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            most = 0.5 if item.name == "hue" else 1.0
            if not 0 <= getattr(self, item.name) <= most:
                raise ValueError(
                    f"colour jitter: expected {item.name} in [0, {most:g}], got {getattr(self, item.name)}"
                )

    @property
    def is_on(self) -> bool:
        """Whether it changes anything."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    @classmethod
    def published(cls) -> ColorJitter:
        """The strengths of all published configurations."""
        return cls(brightness=0.3, contrast=0.4, saturation=0.5, hue=0.1)
