import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tfmemloc import storage

ARRAYS = {"a/b": np.arange(1000.0), "c": np.array([[1, 2]], np.int64)}


def test_arrays_come_back(tmp_path):
    storage.write_arrays(tmp_path / "x.npz", ARRAYS)
    found = storage.read_arrays(tmp_path / "x.npz")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_every_damage_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "x.npz"
    storage.write_arrays(path, ARRAYS)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    noticed = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            found = storage.read_arrays(path)
        except storage.DamagedFileError as error:
            assert str(path) in str(error)
            noticed += 1
            continue
        # A flip in a zip header's time stamp, say, changes no array.
        for name in set(found) & set(ARRAYS):
            np.testing.assert_array_equal(found[name], ARRAYS[name])
    assert noticed > 250
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(storage.DamagedFileError):
            storage.read_arrays(path)


def test_pickles_are_neither_written_nor_read(tmp_path):
    bad = {"x": np.array([object()])}
    with pytest.raises(ValueError, match="dtype object"):
        storage.write_arrays(tmp_path / "x.npz", bad)
    np.savez(tmp_path / "y.npz", **bad)
    with pytest.raises(storage.DamagedFileError):
        storage.read_arrays(tmp_path / "y.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    storage.write_json(path, {"old": 1})

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        storage.write_atomically(path, fail)
    assert storage.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_rows_are_written_one_by_one(tmp_path):
    rows = [{"id": n, "words": f"a, {n}"} for n in range(3)]
    path = tmp_path / "rows.csv"
    storage.write_csv(path, iter(rows))
    assert path.read_bytes() == b'id,words\n0,"a, 0"\n1,"a, 1"\n2,"a, 2"\n'

    def broken():
        yield rows[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        storage.write_csv(path, broken())
    assert path.read_text().count("\n") == 4  # What was there is left.
    with pytest.raises(ValueError, match="expected a row at least"):
        storage.write_csv(tmp_path / "none.csv", [])
    assert not (tmp_path / "none.csv").exists()


def test_json_refuses_nan_and_damage(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(tmp_path / "x.json", float("nan"))
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(storage.DamagedFileError, match="x.json is damaged"):
        storage.read_json(tmp_path / "x.json")


def test_a_lock_dies_with_its_process(tmp_path):
    code = """
        import sys, time
        from tfmemloc import storage
        with storage.lock_directory(sys.argv[1]):
            print("held", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(storage.DirectoryInUseError) as error,
            storage.lock_directory(tmp_path),
        ):
            pass
        assert f"pid {process.pid}" in str(error.value)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with storage.lock_directory(tmp_path):
        pass
