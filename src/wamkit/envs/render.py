"""Off-screen rendering of MuJoCo scenes: one GL context per process, several scenes, low-cost or stock look."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float64, UInt8

from wamkit.envs.base import CameraMatrices, Contact
from wamkit.envs.gl import check_frame, choose_backend
from wamkit.envs.mesh import with_coarse_meshes

Rendering = Literal["low_cost", "stock"]
RENDERING_NAMES: dict[str, str] = {"low_cost": "mujoco-low-cost", "stock": "mujoco-stock"}

# Detail below this length divided by the picture's height is not drawn on coarse meshes: about a third of a pixel of a
# camera that sees the whole robot from 1.3 m.
COARSE_CELL_M = 0.5
_ALL_FINE: Mapping[int, float] = MappingProxyType({})
_HIDDEN_GROUP = 5  # MuJoCo draws geom groups 0 to 2 unless told otherwise
_CHECK_SCENE = """
<mujoco><asset><texture name="t" type="2d" builtin="checker" rgb1=".9 .5 .2" rgb2=".1 .2 .6" width="64" height="64"/>
<material name="m" texture="t" texrepeat="2 2"/></asset>
<worldbody><light pos="0 0 3"/><geom type="plane" size="2 2 .1" material="m"/>
<geom type="sphere" size=".4" pos="0 0 .4" rgba="0 .8 0 1"/><camera name="check" pos="0 -2 2" xyaxes="1 0 0 0 1 1"/>
</worldbody></mujoco>
"""


def apply_rendering(model: Any, rendering: Rendering, height: int, width: int) -> None:
    """Set the look and the size of the picture, before the scene's GL resources are made.

    `low_cost` drops shadows (a 4096-pixel shadow map is most of the stock cost), reflections and 4x multisampling, and
    makes the off-screen buffer as small as the picture. `OffscreenRenderer.load` also draws the robot's meshes as
    finely as the picture can show. About thirty times faster than `stock` on a CPU at 64 pixels. The look is part of
    the observation: its name is in `RobotSpec.rendering`.
    """
    if rendering == "low_cost":
        model.light_castshadow[:] = 0
        model.mat_reflectance[:] = 0
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    else:
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)


class OffscreenRenderer:
    """The process's GL context. Make it once, load scenes into it, close it at the end.

    Several GL contexts in one process have been seen to give frames of noise or black, so a second one is refused while
    the first is open; run other simulators in other processes (`WorkerPool`).

    Args:
        height: pixels of every picture.
        width: pixels of every picture.
        rendering: the look.

    Raises:
        RuntimeError: no OpenGL works here, its pictures are broken, or this process has an open context already.
    """

    _open: ClassVar[weakref.ref[OffscreenRenderer] | None] = None

    def __init__(self, height: int, width: int, rendering: Rendering) -> None:
        if OffscreenRenderer._open is not None and OffscreenRenderer._open() is not None:
            raise RuntimeError(
                "this process has an open simulator with a GL context, and a second context can corrupt pictures; "
                "close the first, or run simulators in a WorkerPool"
            )
        self.height, self.width, self.rendering = height, width, rendering
        self.backend = choose_backend()
        import mujoco
        import mujoco.gl_context

        self._mujoco = mujoco
        try:
            self._context = mujoco.gl_context.GLContext(width, height)
            self._context.make_current()
        except Exception as error:
            raise RuntimeError(f"cannot make an OpenGL context with MUJOCO_GL={self.backend}: {error}") from error
        OffscreenRenderer._open = weakref.ref(self)
        # Also frees a context that nobody closed, while Python still can: EGL complains at interpreter exit otherwise.
        self._free = weakref.finalize(self, self._context.free)
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def load(
        self, model: Any, coarse_meshes: Mapping[int, float] = _ALL_FINE, hidden_groups: Sequence[int] = ()
    ) -> LoadedScene:
        """Upload a model; its look and size are set here.

        Args:
            model: a MuJoCo model; its physics is not touched.
            coarse_meshes: meshes that the low-cost rendering may draw more coarsely: mesh id -> length (metres) such
                that detail below it divided by the picture's height is lost, for instance `COARSE_CELL_M`.
            hidden_groups: geom groups that are not shown, besides those that MuJoCo leaves out by itself (3 to 5).
        """
        apply_rendering(model, self.rendering, self.height, self.width)
        drawn = model
        if self.rendering == "low_cost" and coarse_meshes:
            drawn = with_coarse_meshes(model, {mesh: cell / self.height for mesh, cell in coarse_meshes.items()})
        self.make_current()
        return LoadedScene(self, model, drawn, hidden_groups)

    def make_current(self) -> None:
        """Claim the thread's GL state, which another library may have taken meanwhile.

        Raises:
            RuntimeError: the renderer is closed.
        """
        if self._context is None:
            raise RuntimeError("the renderer is closed; make a new simulator")
        self._context.make_current()

    def close(self) -> None:
        """Free the context; closing twice is fine."""
        if self._context is not None:
            self._free()
            self._context = None
            OffscreenRenderer._open = None

    def _check(self) -> None:
        # In the low-cost look whatever the scenes' look: it is the context that is checked.
        model = self._mujoco.MjModel.from_xml_string(_CHECK_SCENE)
        data = self._mujoco.MjData(model)
        self._mujoco.mj_forward(model, data)
        apply_rendering(model, "low_cost", self.height, self.width)
        scene = LoadedScene(self, model, model)
        first, second = scene.render(data, "check"), scene.render(data, "check")
        scene.close()
        check_frame(first, second, self.backend)


class LoadedScene:
    """GL resources of one model; made by `OffscreenRenderer.load`."""

    def __init__(self, renderer: OffscreenRenderer, model: Any, drawn: Any, hidden_groups: Sequence[int] = ()) -> None:
        mujoco = renderer._mujoco
        self._mujoco, self._renderer, self.model = mujoco, renderer, model
        self._scene = mujoco.MjvScene(model=model, maxgeom=model.ngeom + model.nsite + 64)
        self._option = mujoco.MjvOption()
        for group in hidden_groups:
            self._option.geomgroup[group] = 0
        self._rect = mujoco.MjrRect(0, 0, renderer.width, renderer.height)
        self._resources: Any = mujoco.MjrContext(drawn, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._resources)
        self._pixels = np.empty((renderer.height, renderer.width, 3), dtype=np.uint8)
        self._groups = model.geom_group.copy()
        # A shadow or a mirror image of something outside the view can be inside it: stock rendering draws everything.
        self._is_culling = renderer.rendering == "low_cost"
        self._cameras = {model.camera(index).name: self._fixed_camera(index) for index in range(model.ncam)}

    def render(self, data: Any, camera: str) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of a model camera, rows from the top of the camera's own frame, as a view of a fresh array."""
        self._draw(data, camera)
        return self._pixels[::-1].copy()

    def geom_ids(self, data: Any, camera: str) -> np.ndarray:
        """The geom seen at each pixel, int `[h, w]`, -1 where there is none; rows as in `render`."""
        flags, before = self._scene.flags, self._scene.flags.copy()
        flags[self._mujoco.mjtRndFlag.mjRND_SEGMENT] = True
        flags[self._mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        try:
            self._draw(data, camera)
        finally:
            flags[:] = before
        codes = self._pixels[::-1].astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
        geoms = np.full(self._scene.ngeom + 1, -1, dtype=np.int64)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == self._mujoco.mjtObj.mjOBJ_GEOM:
                geoms[geom.segid + 1] = geom.objid
        return geoms[codes]

    def close(self) -> None:
        """Free the GL resources; closing twice is fine."""
        if self._resources is not None:
            self._renderer.make_current()
            self._resources.free()
            self._resources = None

    def _draw(self, data: Any, camera: str) -> None:
        mujoco = self._mujoco
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        if self._is_culling:
            outside = self._outside(data, self._cameras[camera].fixedcamid)
            self.model.geom_group[:] = np.where(outside, _HIDDEN_GROUP, self._groups)
        mujoco.mjv_updateScene(self.model, data, self._option, None, self._cameras[camera], everything, self._scene)
        self.model.geom_group[:] = self._groups
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._resources)
        mujoco.mjr_render(self._rect, self._scene, self._resources)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._resources)

    def _outside(self, data: Any, camera: int) -> np.ndarray:
        """Which geoms' bounding spheres lie wholly outside a camera's view; leaving them out changes no pixel."""
        centres = (data.geom_xpos - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)
        radius, depth = self.model.geom_rbound, -centres[:, 2]
        vertical = math.tan(math.radians(self.model.cam_fovy[camera]) / 2)
        horizontal = vertical * self._renderer.width / self._renderer.height
        beyond = depth < -radius
        for offset, slope in ((centres[:, 0], horizontal), (centres[:, 1], vertical)):
            beyond |= np.abs(offset) - depth * slope > radius * math.hypot(1.0, slope)
        return beyond & (radius > 0)  # infinite planes have radius 0

    def _fixed_camera(self, index: int) -> Any:
        camera = self._mujoco.MjvCamera()
        camera.type = self._mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = index
        return camera


def camera_intrinsics(fovy_degrees: float, height: int, width: int) -> Float64[np.ndarray, "3 3"]:
    """Pinhole matrix in pixels, square pixels, integer coordinates at pixel centres.

    Args:
        fovy_degrees: MuJoCo's vertical field of view, degrees.
        height: pixels.
        width: pixels.
    """
    focal = 0.5 * height / math.tan(math.radians(fovy_degrees) / 2)
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])


def camera_matrices(model: Any, data: Any, camera: str, height: int, width: int) -> CameraMatrices:
    """Matrices of a model camera's picture as `LoadedScene.render` gives it (before any turning upright)."""
    index = model.camera(camera).id
    pose = np.eye(4)
    # MuJoCo cameras look along -z with y up; OpenCV cameras look along z with y down.
    pose[:3, :3] = data.cam_xmat[index].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])
    pose[:3, 3] = data.cam_xpos[index]
    return CameraMatrices(intrinsics=camera_intrinsics(float(model.cam_fovy[index]), height, width), pose=pose)


def find_contacts(model: Any, data: Any, pad_geoms: frozenset[int]) -> list[Contact]:
    """Contact points that involve one of the given geoms (finger pads)."""
    import mujoco

    contacts, force = [], np.zeros(6)
    for index in range(data.ncon):
        contact = data.contact[index]
        geoms = (int(contact.geom1), int(contact.geom2))
        if pad_geoms.isdisjoint(geoms):
            continue
        mujoco.mj_contactForce(model, data, index, force)
        x, y, z = (float(number) for number in contact.pos)
        first, second = (model.body(model.geom_bodyid[geom]).name for geom in geoms)
        contacts.append(
            Contact(
                position=(x, y, z),
                normal_force=float(force[0]),
                distance=float(contact.dist),
                bodies=(first, second),
                is_pad=True,
            )
        )
    return contacts
