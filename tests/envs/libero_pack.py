"""Scene assets for the ten tasks of libero_object, made here: boxes and a basket in the published folders and format.

They stand in for the download, so that the real package runs where it cannot be fetched. Shapes are ours.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

# Half sizes in metres as the objects stand in the scene, and whether the package turns them about x to place them.
OBJECTS: dict[str, tuple[tuple[float, float, float], bool]] = {
    "alphabet_soup": ((0.03, 0.03, 0.04), False),
    "bbq_sauce": ((0.03, 0.02, 0.06), True),
    "butter": ((0.035, 0.02, 0.012), False),
    "chocolate_pudding": ((0.035, 0.022, 0.015), True),
    "cream_cheese": ((0.04, 0.021, 0.012), False),
    "ketchup": ((0.03, 0.02, 0.06), True),
    "milk": ((0.027, 0.027, 0.06), True),
    "orange_juice": ((0.027, 0.027, 0.06), True),
    "salad_dressing": ((0.03, 0.02, 0.06), True),
    "tomato_sauce": ((0.03, 0.03, 0.04), False),
}
_FLOOR, _WALL = "textures/light-gray-floor-tile.png", "textures/light-gray-plaster.png"
_CAMERAS = {
    "frontview": "1.0 0 1.45",
    "birdview": "-0.2 0 3.0",
    "agentview": "0.5 0 1.35",
    "sideview": "-0.06 1.28 1.49",
}


def write_pack(root: Path) -> Path:
    """Write the pack; gives the folder that `WAMKIT_LIBERO_ASSETS` may name."""
    (root / "textures").mkdir(parents=True)
    _checks(root / _FLOOR, (200, 190, 180), (150, 145, 140))
    _checks(root / _WALL, (120, 130, 140), (125, 135, 145))
    (root / "scenes").mkdir()
    for name in ("libero_floor_base_style", "libero_tabletop_base_style"):
        (root / "scenes" / f"{name}.xml").write_text(_scene())
    for number, (name, (half, is_turned)) in enumerate(OBJECTS.items()):
        folder = root / "stable_hope_objects" / name
        folder.mkdir(parents=True)
        colour = ((37 * number) % 200 + 40, (91 * number) % 200 + 40, (53 * number) % 200 + 40)
        _checks(folder / "texture_map.png", colour, (240, 240, 240))
        (folder / f"{name}.xml").write_text(_object(name, half, is_turned))
    folder = root / "stable_scanned_objects" / "basket"
    folder.mkdir(parents=True)
    _checks(folder / "texture_map.png", (120, 80, 40), (100, 65, 30))
    (folder / "basket.xml").write_text(_basket())
    return root


def _checks(path: Path, first: tuple[int, int, int], second: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (64, 64), first)
    for x in range(0, 64, 16):
        for y in range(x // 16 % 2 * 16, 64, 32):
            image.paste(second, (x, y, x + 16, y + 16))
    image.save(path)


def _scene() -> str:
    cameras = "".join(
        f'<camera mode="fixed" name="{name}" pos="{place}" quat="0.653 0.271 0.271 0.653"/>'
        for name, place in _CAMERAS.items()
    )
    return f"""<mujoco model="floor">
  <asset>
    <texture file="../{_FLOOR}" type="2d" name="texplane"/>
    <material name="floorplane" texrepeat="3 3" texture="texplane" texuniform="true"/>
    <texture file="../{_WALL}" type="2d" name="tex-wall"/>
    <material name="walls_mat" texture="tex-wall"/>
  </asset>
  <worldbody>
    <body name="floor" pos="0 0 0">
      <geom condim="3" group="1" material="floorplane" name="floor" pos="0 0 0" size="3 3 .125" type="plane"/>
    </body>
    <geom pos="-2 0 1.5" quat="0.5 0.5 0.5 0.5" size="1.5 1.5 0.01" type="box" conaffinity="0" contype="0" group="1"
          name="wall_rear_visual" material="walls_mat"/>
    <light name="light1" diffuse=".8 .8 .8" dir="0 -.15 -1" directional="false" pos="1 1 4.0"/>
    {cameras}
  </worldbody>
</mujoco>
"""


def _object(name: str, half: tuple[float, float, float], is_turned: bool) -> str:
    x, y, z = half
    size = f"{x} {z} {y}" if is_turned else f"{x} {y} {z}"
    return _body(name, _box(name, size, "0 0 0"), z)


def _basket() -> str:
    walls = [
        _box("basket", "0.075 0.075 0.005", "0 0 0.005"),
        *(_box("basket", "0.005 0.07 0.065", f"{x} 0 0.07") for x in (-0.07, 0.07)),
        *(_box("basket", "0.07 0.005 0.065", f"0 {y} 0.07") for y in (-0.07, 0.07)),
    ]
    region = (
        '<site type="box" pos="0 0 0.07" quat="0 0 0 1" size="0.061 0.061 0.07" rgba="0 0 0 0" name="contain_region"/>'
    )
    return _body("basket", region + "".join(walls), 0.06)


def _box(name: str, size: str, place: str) -> str:
    common = f'type="box" size="{size}" pos="{place}"'
    physics = 'solimp="0.998 0.998 0.001" solref="0.001 1" density="100" friction="0.95 0.3 0.1"'
    return (
        f'<geom {common} density="0" conaffinity="0" contype="0" group="1" material="{name}"/>'
        f'<geom {common} {physics} group="0" rgba="0.8 0.8 0.8 0.3"/>'
    )


def _body(name: str, content: str, height: float) -> str:
    return f"""<mujoco model="{name}">
  <asset>
    <texture file="texture_map.png" name="tex-{name}" type="2d"/>
    <material name="{name}" texture="tex-{name}"/>
  </asset>
  <worldbody>
    <body>
      <body name="object">{content}</body>
      <site rgba="0 0 0 0" size="0.005" pos="0 0 {-height}" name="bottom_site"/>
      <site rgba="0 0 0 0" size="0.005" pos="0 0 {height}" name="top_site"/>
      <site rgba="0 0 0 0" size="0.005" pos="0.025 0.025 0" name="horizontal_radius_site"/>
    </body>
  </worldbody>
</mujoco>
"""
