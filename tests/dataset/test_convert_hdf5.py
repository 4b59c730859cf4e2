"""Demonstrations of LIBERO and robomimic in their published form become episodes in our conventions, others do not."""

import json
import sys

import numpy as np
import pytest

from wamkit.cli.main import main
from wamkit.data.convert_hdf5 import convert_hdf5
from wamkit.data.hdf5 import Hdf5Settings, is_hdf5, read_demonstration
from wamkit.data.inspect import inspect
from wamkit.data.lerobot import DatasetError, LeRobotDataset
from wamkit.robots import libero_robot

h5py = pytest.importorskip("h5py")

TASK = "pick up the bowl and place it on the plate"
STEM = "KITCHEN_SCENE10_pick_up_the_bowl_demo"
KEEP = Hdf5Settings(idle="keep")
REAL = {"num_demos": 2, "bddl_file_name": "somewhere/bddl_files/kitchen/pick.bddl"}
REAL |= {"problem_info": json.dumps({"domain_name": "robosuite", "language_instruction": TASK})}
REAL |= {"env_args": json.dumps({"type": 1, "env_kwargs": {"control_freq": 20, "camera_heights": 32}})}


def pictures(length: int, size: int, seed: int) -> np.ndarray:
    """Smooth pictures with a bright corner at the lower right, so that a turn shows; row t is a little brighter."""
    rows, columns = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing="ij")
    base = 40 + 100 * rows * columns + 20 * seed
    return np.stack([np.repeat((base + 3 * t)[..., None], 3, axis=2) for t in range(length)]).astype(np.uint8)


def motions(length: int, seed: int) -> np.ndarray:
    actions = np.random.default_rng(seed).uniform(0.1, 0.9, (length, 7))
    actions[:, 6] = np.where(np.arange(length) < length // 2, -1.0, 1.0)
    return actions


def write_libero(path, *, lengths=(9, 8), size=32, late=False, attributes=REAL, change=None) -> None:
    """A file as `create_dataset` of LIBERO writes it; `late` as it really does: seen after the action of the row."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(attributes)
        for number, length in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            obs = demo.create_group("obs")
            rows = np.arange(length + 1, dtype=np.float64)[:, None]
            joints = rows * np.linspace(0.1, 0.2, 7) + number
            seen = slice(1, None) if late else slice(0, length)
            obs["agentview_rgb"] = pictures(length + 1, size, number)[seen]
            obs["eye_in_hand_rgb"] = pictures(length + 1, size, number + 2)[seen]
            obs["ee_pos"] = (rows * [0.1, 0.2, 0.3])[seen]
            obs["ee_ori"] = (3 + rows * [0.01, 0.02, 0.03])[seen]
            obs["ee_states"] = np.concatenate([obs["ee_pos"], obs["ee_ori"]], axis=1)
            obs["gripper_states"] = (rows * [0.001, -0.001])[seen]
            obs["joint_states"] = joints[seen]
            demo["actions"] = motions(length, number)
            demo["states"] = np.concatenate([rows, joints, rows + np.zeros(30)], axis=1)[:length]
            demo["robot_states"] = np.zeros((length, 9))
            for name in ("rewards", "dones"):
                demo[name] = (np.arange(length) == length - 1).astype(np.uint8)
            demo.attrs["num_samples"] = length
        if change is not None:
            change(data)


def write_robomimic(path, *, length=8, size=32, attributes=None) -> None:
    """A file as `dataset_states_to_obs` of robomimic writes it."""
    angle = np.linspace(0.1, 1.2, length)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        data.attrs["total"] = length
        data.attrs.update(attributes or {})
        demo = data.create_group("demo_0")
        obs = demo.create_group("obs")
        obs["agentview_image"] = pictures(length, size, 0)
        obs["robot0_eye_in_hand_image"] = pictures(length, size, 2)
        obs["robot0_eef_pos"] = np.arange(length)[:, None] * [0.1, 0.2, 0.3]
        zeros = np.zeros(length)
        obs["robot0_eef_quat"] = np.stack([zeros, np.sin(angle / 2), zeros, np.cos(angle / 2)], axis=1)
        obs["robot0_gripper_qpos"] = np.tile([0.02, -0.02], (length, 1))
        demo["actions"] = motions(length, 0)
        demo["rewards"] = (np.arange(length) >= length - 2).astype(np.float64)
        demo["dones"] = (np.arange(length) >= length - 2).astype(np.int64)
        demo.attrs["num_samples"] = length


def test_libero_becomes_a_dataset_of_its_robot(tmp_path):
    source = tmp_path / f"{STEM}.hdf5"
    write_libero(source)
    steps = []
    report = convert_hdf5(source, tmp_path / "out", progress=lambda *step: steps.append(step))
    assert (report.source, report.episodes, report.frames, report.dropped_rows) == ("LIBERO HDF5", 2, 17, 0)
    assert steps == [(1, 2), (2, 2)]
    dataset = LeRobotDataset(tmp_path / "out")
    assert dataset.robot == libero_robot(32, 32) and dataset.fps == 20
    assert dataset.wamkit["notes"]["conversion"] == report.notes and "clock" not in report.notes
    assert report.notes["turned_episodes"] == 2 and report.notes["episodes_paired_with_the_next_action"] == 0
    for number, length in enumerate((9, 8)):
        record, columns = dataset.episodes[number], dataset.columns(number)
        assert (record.length, record.task) == (length, TASK)
        facts = {"file": source.name, "demo": f"demo_{number}", "bddl_file": "pick.bddl", "dropped_rows": 0}
        assert record.metadata == facts
        np.testing.assert_array_equal(columns["action"], motions(length, number).astype(np.float32))
        rows = np.arange(length)[:, None]
        state = np.concatenate([rows * [0.1, 0.2, 0.3], 3 + rows * [0.01, 0.02, 0.03], rows * [0.001, -0.001]], axis=1)
        np.testing.assert_array_equal(columns["observation.state"], state.astype(np.float32))
        np.testing.assert_array_equal(columns["next.reward"], np.arange(length) == length - 1)
        np.testing.assert_array_equal(columns["next.success"], np.arange(length) == length - 1)
        for camera, seed in (("agentview", number), ("robot0_eye_in_hand", number + 2)):
            frames = dataset.frames(number, camera, range(length)).astype(int)
            turned = pictures(length, 32, seed)[:, ::-1, ::-1]
            assert np.abs(frames - turned).mean() < 2 and np.abs(frames - pictures(length, 32, seed)).mean() > 5
    assert inspect(tmp_path / "out").is_sound


def test_pictures_taken_after_the_action_are_paired_with_the_next(tmp_path):
    source = tmp_path / f"{STEM}.hdf5"
    write_libero(source, late=True)
    demo = read_demonstration(source, "demo_0", KEEP)
    assert demo.is_late and len(demo.episode) == 8
    np.testing.assert_array_equal(demo.episode.actions, motions(9, 0)[1:].astype(np.float32))
    np.testing.assert_allclose(demo.episode.state[:, 0], 0.1 * np.arange(1, 9), rtol=1e-6)
    np.testing.assert_array_equal(demo.episode.video["agentview"], pictures(10, 32, 0)[1:9, ::-1, ::-1])
    assert demo.episode.success.tolist() == [False] * 7 + [True]
    as_stored = read_demonstration(source, "demo_0", Hdf5Settings(idle="keep", observed="before"))
    assert not as_stored.is_late and len(as_stored.episode) == 9
    report = convert_hdf5(source, tmp_path / "out")
    assert report.notes["episodes_paired_with_the_next_action"] == 2 and report.frames == 15


def test_robomimic_is_upright_and_has_quaternions(tmp_path):
    source = tmp_path / "image.hdf5"
    write_robomimic(source)
    demo = read_demonstration(source, "demo_0", Hdf5Settings(task="lift the cube"))
    assert demo.form == "robomimic" and not demo.is_turned and demo.episode.task == "lift the cube"
    np.testing.assert_array_equal(demo.episode.video["robot0_eye_in_hand"], pictures(8, 32, 2))
    angle = np.linspace(0.1, 1.2, 8)
    np.testing.assert_allclose(demo.episode.state[:, 3:6], angle[:, None] * [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(demo.episode.state[:, 6:], np.tile([0.02, -0.02], (8, 1)), rtol=1e-6)
    assert demo.episode.success.tolist() == [False] * 6 + [True] * 2
    turned = read_demonstration(source, "demo_0", Hdf5Settings(task="lift", pictures="turn"))
    np.testing.assert_array_equal(turned.episode.video["agentview"], pictures(8, 32, 0)[:, ::-1, ::-1])
    write_robomimic(source, attributes=REAL | {"num_demos": 1})  # LIBERO's, with robomimic's names
    assert read_demonstration(source, "demo_0", KEEP).is_turned


def still(rows, actions):
    actions[rows, :6] = 5e-5 / np.sqrt(6)
    return actions


def test_what_a_dropped_row_earned_is_not_lost(tmp_path):
    source = tmp_path / f"{STEM}.hdf5"

    def rest(data):
        for demo in data.values():
            demo["actions"][...] = still([0, 3, len(demo["actions"]) - 1], demo["actions"][()])

    write_libero(source, change=rest)
    report = convert_hdf5(source, tmp_path / "out")
    assert report.dropped_rows == 6 and report.frames == 11
    assert report.notes["dropped_rows"] == 6 and "not always 1/fps" in report.notes["clock"]
    dataset = LeRobotDataset(tmp_path / "out")
    columns = dataset.columns(0)
    np.testing.assert_array_equal(columns["action"], motions(9, 0)[[1, 2, 4, 5, 6, 7]].astype(np.float32))
    assert columns["next.success"].tolist() == [False] * 5 + [True] and columns["next.reward"][-1] == 1
    assert dataset.episodes[0].metadata["dropped_rows"] == 3
    frames = dataset.frames(0, "agentview", range(6)).astype(int)
    assert np.abs(frames - pictures(9, 32, 0)[[1, 2, 4, 5, 6, 7], ::-1, ::-1]).mean() < 2
    assert convert_hdf5(source, tmp_path / "all", KEEP).frames == 17


def test_a_folder_of_files_in_the_order_of_names_and_numbers(tmp_path):
    folder = tmp_path / "libero_goal"
    folder.mkdir()
    bare = {"num_demos": 11}  # the published data without idle rows have no description: the name says the task
    write_libero(folder / "open_the_drawer_demo.hdf5", lengths=range(3, 14), attributes=bare)
    write_libero(folder / f"{STEM}.hdf5", lengths=(4,), attributes=bare | {"num_demos": 1})
    assert is_hdf5(folder) and not is_hdf5(tmp_path / "nothing")
    report = convert_hdf5(folder, tmp_path / "out", KEEP)
    dataset = LeRobotDataset(tmp_path / "out")
    assert [record.length for record in dataset.episodes] == [4, *range(3, 14)]
    assert dataset.read_tasks() == ["pick up the bowl", "open the drawer"]
    assert report.notes["files"] == [f"{STEM}.hdf5", "open_the_drawer_demo.hdf5"]
    assert not is_hdf5(tmp_path / "out")


def test_the_command(tmp_path, capsys):
    source, out = tmp_path / "image.hdf5", tmp_path / "out"
    write_robomimic(source)
    assert main(["data", "convert", str(source), "--output", str(out)]) == 2
    assert "give one with --task" in capsys.readouterr().err
    arguments = ["data", "convert", str(source), "--task", "lift", "--idle", "drop", "--pictures", "turn"]
    assert main([*arguments, "--output", str(out)]) == 0
    assert "holds 1 episodes and 8 rows of robomimic HDF5" in capsys.readouterr().out
    assert LeRobotDataset(out).wamkit["notes"]["conversion"]["turned_episodes"] == 1
    assert main([*arguments, "--output", str(tmp_path / "new"), "--robot", "libero"]) == 2
    assert "--robot: without effect on" in capsys.readouterr().err
    write_libero(source, change=lambda data: put(data, "demo_0/actions", still([2], motions(9, 0))))
    assert main(["data", "convert", str(source), "--output", str(tmp_path / "new"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["source"], printed["dropped_rows"], printed["frames"]) == ("LIBERO HDF5", 1, 16)


# -- refusals --------------------------------------------------------------------------------------------------------


def put(data, name, values) -> None:
    del data[name]
    data[name] = values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: put(d, "demo_1/actions", np.zeros((8, 6))), r"demo_1: expected 'actions' of shape \[T, 7\], got"),
        (lambda d: put(d, "demo_1/actions", np.zeros((7, 7))), r"'ee_pos' of shape \[7, 3\], got \[8, 3\]"),
        (lambda d: put(d, "demo_1/actions", np.full((8, 7), np.nan)), "finite numbers in 'actions', got .* in row 0"),
        (lambda d: put(d, "demo_1/actions", np.eye(8)[:, :7]), r"to be -1 \(open\) to 1 \(close\), got 0 and 1"),
        (lambda d: put(d, "demo_0/rewards", np.zeros(3)), r"demo_0: expected 'rewards' of shape \[9\], got \[3\]"),
        (lambda d: put(d, "demo_0/obs/gripper_states", np.zeros((9, 6))), r"'gripper_states' of shape \[9, 2\]"),
        (
            lambda d: put(d, "demo_0/obs/agentview_rgb", np.zeros((9, 3, 32, 32), np.uint8)),
            r"'agentview_rgb' as uint8 \[9, height, width, 3\], got uint8 \[9, 3, 32, 32\]",
        ),
        (
            lambda d: put(d, "demo_0/obs/agentview_rgb", np.zeros((9, 32, 32, 3), np.float32)),
            r"as uint8 .*, got float32 \[9, 32, 32, 3\]",
        ),
        (
            lambda d: put(d, "demo_0/obs/eye_in_hand_rgb", np.zeros((9, 16, 16, 3), np.uint8)),
            "expected both cameras to have one size",
        ),
        (lambda d: d["demo_0/obs"].pop("eye_in_hand_rgb"), r"expected 'eye_in_hand_rgb' in '/data/demo_0/obs', found"),
        (lambda d: d.pop("demo_1"), "expected 2 demonstrations, got 1; copy the file again"),
        (lambda d: d["demo_0"].pop("obs"), r"demo_0: expected the pictures .* under 'obs', found \[\]"),
        (lambda d: d["demo_0"].attrs.update(num_samples=50), "demo_0: expected 50 rows, got 9"),
        (lambda d: d.attrs.update(problem_info="{"), r"expected JSON as the attribute 'problem_info', got '\{'"),
        (
            lambda d: d.attrs.update(env_args='{"env_kwargs": {"control_freq": 10}}'),
            "expected 20 rows per second, got 10 in 'env_args'",
        ),
        (lambda d: put(d, "demo_0/actions", still(slice(None), -np.ones((9, 7)))), "that move the robot, got none"),
        (
            lambda d: [
                put(d, f"demo_1/obs/{key}_rgb", np.zeros((8, 64, 64, 3), np.uint8))
                for key in ("agentview", "eye_in_hand")
            ],
            "demo_1: expected pictures of 32x32 as in the first demonstration, got 64x64",
        ),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path, change, message):
    source = tmp_path / f"{STEM}.hdf5"
    write_libero(source, change=change)
    with pytest.raises(DatasetError, match=rf"{STEM}\.hdf5.*{message}"):
        convert_hdf5(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name]


def spoilt(data) -> None:
    put(data, "demo_0/rewards", np.full(6, np.nan))
    put(data, "demo_2/obs/ee_pos", np.where(np.eye(6, 3), np.inf, 1.0))
    del data["demo_3/obs/agentview_rgb"]
    put(data, "demo_4/obs/joint_states", np.full((6, 7), np.nan))
    put(data, "demo_5/actions", still(slice(None), -np.ones((6, 7))))


def test_broken_demonstrations_are_left_out_if_wanted(tmp_path, capsys, caplog):
    source, out = tmp_path / f"{STEM}.hdf5", tmp_path / "out"
    write_libero(source, lengths=(6,) * 7, attributes=REAL | {"num_demos": 7}, change=spoilt)
    arguments = ["data", "convert", str(source), "--output", str(out)]
    assert main(arguments) == 2
    message = "demo_0: expected finite numbers in 'rewards', got nan in row 0; --skip-broken leaves such"
    assert message in capsys.readouterr().err and not out.exists()
    assert main([*arguments, "--skip-broken"]) == 0
    shown = capsys.readouterr()
    assert "holds 2 episodes and 12 rows" in shown.out and "5 episodes of it were left out" in shown.out
    reasons = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    wanted = {0: "'rewards'", 2: "'ee_pos'", 3: "'agentview_rgb'", 4: "'joint_states'", 5: "that move the robot"}
    for reason, (number, what) in zip(reasons, wanted.items(), strict=True):
        assert reason.startswith(f"demo_{number} of {source.name} is left out: ") and what in reason
    found = LeRobotDataset(out)
    assert [record.metadata["demo"] for record in found.episodes] == ["demo_1", "demo_6"]
    assert found.wamkit["notes"]["conversion"]["skipped_demonstrations"] == 5 and inspect(out).is_sound


def test_damage_within_a_file_is_one_demonstration_s(tmp_path):
    source = tmp_path / f"{STEM}.hdf5"

    def squeeze(data):
        frames = data["demo_1/obs/agentview_rgb"][()]
        del data["demo_1/obs/agentview_rgb"]
        data["demo_1/obs"].create_dataset("agentview_rgb", data=frames, chunks=frames.shape, compression="gzip")
        places.append(data["demo_1/obs/agentview_rgb"].id.get_chunk_info(0).byte_offset)

    places: list[int] = []
    write_libero(source, change=squeeze)
    content = bytearray(source.read_bytes())
    content[places[0] : places[0] + 64] = bytes(64)
    source.write_bytes(content)
    with pytest.raises(DatasetError, match=r"demo_1: expected readable numbers as 'agentview_rgb', .*--skip-broken"):
        convert_hdf5(source, tmp_path / "out")
    report = convert_hdf5(source, tmp_path / "out", skip_broken=True)
    assert (report.episodes, report.left_out) == (1, 1)


def test_leaving_out_mends_neither_all_nor_the_conventions_of_a_file(tmp_path):
    source = tmp_path / f"{STEM}.hdf5"
    write_libero(source, change=lambda data: [put(data, f"demo_{n}/rewards", np.full(9 - n, np.nan)) for n in (0, 1)])
    with pytest.raises(DatasetError, match=r"a demonstration that is not broken, got none of 2; the first: .*demo_0: "):
        convert_hdf5(source, tmp_path / "out", skip_broken=True)
    write_libero(source, change=lambda data: put(data, "demo_1/actions", np.eye(8)[:, :7]))
    with pytest.raises(DatasetError, match=r"to be -1 \(open\) to 1 \(close\), got 0 and 1 as in RLDS data; .* files$"):
        convert_hdf5(source, tmp_path / "out", skip_broken=True)
    assert not (tmp_path / "out").exists()


def test_files_that_are_something_else(tmp_path):
    source = tmp_path / "image.hdf5"
    write_robomimic(source)
    with pytest.raises(
        DatasetError, match=r"expected a 'language_instruction' in 'problem_info', got none; give .*--task"
    ):
        convert_hdf5(source, tmp_path / "out")
    with h5py.File(source, "a") as file:
        put(file, "data/demo_0/obs/robot0_eef_quat", np.ones((8, 4)))
    with pytest.raises(DatasetError, match="expected unit quaternions"):
        convert_hdf5(source, tmp_path / "out", Hdf5Settings(task="lift"))
    whole = source.read_bytes()
    head, last = whole[: whole.rindex(b"TREE")], whole[whole.rindex(b"TREE") :]
    source.write_bytes(head + last.replace(b"TREE", b"XXXX"))  # where a group lists what it holds
    with pytest.raises(DatasetError, match=r"image\.hdf5: expected a readable HDF5 file, got damage"):
        convert_hdf5(source, tmp_path / "out", Hdf5Settings(task="lift"))
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"image\.hdf5: expected a complete HDF5 file, got something else"):
        convert_hdf5(source, tmp_path / "out")
    with h5py.File(source, "w") as file:
        file["steps"] = np.zeros(3)
    with pytest.raises(DatasetError, match=r"expected a group 'data' with demonstrations .*, found \['steps'\]"):
        convert_hdf5(source, tmp_path / "out")
    source.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected HDF5 files \(\.hdf5, \.h5\) at .*found none"):
        convert_hdf5(source, tmp_path / "out")


def test_an_interruption_leaves_nothing(tmp_path):
    source = tmp_path / f"{STEM}.hdf5"
    write_libero(source)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_hdf5(source, tmp_path / "out", progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(FileExistsError, match=r"expected nothing at .*out, found \['mine'\]"):
        convert_hdf5(source, tmp_path / "out")


def test_without_h5py_the_message_says_what_to_install(tmp_path, monkeypatch):
    source = tmp_path / f"{STEM}.hdf5"
    write_libero(source)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs h5py, which is not installed; install it with: pip install"):
        convert_hdf5(source, tmp_path / "out")
