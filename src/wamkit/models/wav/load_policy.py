"""What a source of weights may lack, by the source's name; importing this module loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Profile = Literal["exact", "ltx", "ge_base", "ge_act", "wav_video", "wav_value"]

GROUPS: dict[str, str] = {
    "view": "view embedding (LTX-Video has none)",
    "value": "value expert",
    "action": "action expert",
    "action.attn3": "the action expert's attention to the value expert (GE-act has none)",
}
RESIZABLE = ("value_proj_in", "value_proj_out", "action_proj_in", "action_proj_out")


@dataclass(frozen=True, kw_only=True)
class LoadPolicy:
    """What a source of weights may lack; everything else has to fit to the tensor.

    Args:
        holds: what such a source is, in words.
        may_miss: groups (`GROUPS`) that may be absent as a whole and then get initial values.
        may_resize: modules (`RESIZABLE`) whose tensors may differ in shape and then get initial values.
    """

    holds: str
    may_miss: tuple[str, ...] = ()
    may_resize: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for names, known in ((self.may_miss, GROUPS), (self.may_resize, RESIZABLE)):
            unknown = sorted(set(names) - set(known))
            if unknown:
                raise ValueError(f"unknown load policy {unknown}; choose among {list(known)}")

    def allowing(self, may_resize: Sequence[str]) -> LoadPolicy:
        """The same policy with more modules whose shape may differ."""
        return replace(self, may_resize=(*self.may_resize, *may_resize))


EXACT = LoadPolicy(holds="every tensor of the network")
PROFILES: dict[str, LoadPolicy] = {
    "exact": EXACT,
    "ltx": LoadPolicy(holds="LTX-Video: the video stream", may_miss=("view", "value", "action")),
    "ge_base": LoadPolicy(holds="GE-base: the video stream of several views", may_miss=("value", "action")),
    "ge_act": LoadPolicy(
        holds="GE-act: video stream and an action expert that reads no values",
        may_miss=("value", "action.attn3"),
        may_resize=("action_proj_in", "action_proj_out"),
    ),
    "wav_video": LoadPolicy(holds="WAV after its stage video_only", may_miss=("value", "action")),
    "wav_value": LoadPolicy(holds="WAV after its stage value_only", may_miss=("action",)),
}


def chosen_policy(profile: str, may_resize: Sequence[str] = ()) -> LoadPolicy:
    """The policy of a profile, with more modules whose shape may differ.

    Raises:
        ValueError: an unknown profile or module.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r} of weights for a WAV; choose among {', '.join(PROFILES)}")
    return PROFILES[profile].allowing(may_resize)


def group_of(name: str) -> str:
    """The group a tensor belongs to; `video` for the stream itself."""
    if name.startswith("view_"):
        return "view"
    if name.startswith("action_blocks.") and ".attn3." in name:
        return "action.attn3"
    return next((part for part in ("value", "action") if name.startswith(f"{part}_")), "video")


def recognize(names: Iterable[str]) -> Profile | None:
    """The profile whose sources hold just these groups, or `None` when no published source does.

    GE-base and WAV after its first stage hold the same tensors; the answer is `ge_base` for both.
    """
    held = frozenset(map(group_of, names))
    known: dict[frozenset[str], Profile] = {
        frozenset({"video"}): "ltx",
        frozenset({"video", "view"}): "ge_base",
        frozenset({"video", "view", "action"}): "ge_act",
        frozenset({"video", "view", "value"}): "wav_value",
        frozenset({"video", "view", "value", "action", "action.attn3"}): "exact",
    }
    return known.get(held)
