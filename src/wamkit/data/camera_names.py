"""Names that a dataset's cameras are read under where its files call them otherwise.

Published datasets and simulators name the same camera differently, and a policy is compared with both by names. So our
part of `info.json` may hold a map from our name to the dataset's own (`observation.images.` cut off); no file is
renamed:

    {"wamkit": {"cameras": {"agentview": "image", "robot0_eye_in_hand": "wrist_image"}}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wamkit.data import features as words

CAMERAS = "cameras"
"""Our map in our part of `info.json`."""


def camera_keys(features: Mapping[str, Mapping[str, Any]], names: Mapping[str, Any]) -> dict[str, str]:
    """Name of each camera -> its feature, in the order of the features.

    Args:
        features: of a dataset.
        names: our name -> the dataset's own, not checked yet; cameras that are not in it keep their own.

    Raises:
        ValueError: a name that is no text, of no camera or of two.
    """
    own = {words.camera_name(key): key for key, feature in features.items() if words.is_camera(feature)}
    for name, camera in names.items():
        if not isinstance(camera, str) or camera not in own:
            raise ValueError(f"{name!r}: expected the name of one of the cameras {list(own)}, got {camera!r}")
        if not name:
            raise ValueError(f"expected a name for camera {camera!r}, got an empty one")
    ours = {camera: [name for name, other in names.items() if other == camera] or [camera] for camera in own}
    several = {camera: found for camera, found in ours.items() if len(found) > 1}
    if several:
        camera, found = next(iter(several.items()))
        raise ValueError(f"expected one name for camera {camera!r}, got {found}")
    keys: dict[str, str] = {}
    for camera, (name,) in ours.items():
        if name in keys:
            raise ValueError(
                f"expected different names for cameras, {name!r} would be both {words.camera_name(keys[name])!r} and "
                f"{camera!r}"
            )
        keys[name] = own[camera]
    return keys


def with_renamed(info: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """The content of `info.json` with other names for some cameras, in the robot that it names too.

    Args:
        info: checked.
        renamed: the dataset's own name -> the name to read it under; its own name takes an earlier one away.

    Raises:
        ValueError: the dataset has no such camera, or two would have one name.
    """
    own = info.get(words.WAMKIT, {})
    before = {key: name for name, key in camera_keys(info["features"], own.get(CAMERAS, {})).items()}
    after = {words.camera_name(key): name for key, name in before.items()}
    unknown = [camera for camera in renamed if camera not in after]
    if unknown:
        raise ValueError(f"--rename: expected cameras of the dataset, {list(after)}, got {unknown[0]!r}")
    after |= renamed
    names: dict[str, str] = {}
    for camera, name in after.items():
        if name in names:
            raise ValueError(
                f"--rename: expected different names for cameras, {name!r} would be both {names[name]!r} and {camera!r}"
            )
        names[name] = camera
    keys = camera_keys(info["features"], names)
    changed = {before[key]: name for name, key in keys.items()}
    own = {key: value for key, value in own.items() if key != CAMERAS}
    kept = {name: camera for name, camera in names.items() if name != camera}
    if kept:
        own[CAMERAS] = kept
    if isinstance(own.get("robot", {}).get(CAMERAS), list):
        own["robot"] = own["robot"] | {CAMERAS: [_renamed(camera, changed) for camera in own["robot"][CAMERAS]]}
    return {**info, words.WAMKIT: own} if own or words.WAMKIT in info else dict(info)


def _renamed(camera: Any, changed: Mapping[str, str]) -> Any:
    """A camera of a stored robot, which may be malformed; that is for whoever reads it to say."""
    if not isinstance(camera, dict) or not isinstance(camera.get("name"), str):
        return camera
    return camera | {"name": changed.get(camera["name"], camera["name"])}
