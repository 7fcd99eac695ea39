"""Files are written whole or not at all, and by one process at a time."""

import errno
import os
from multiprocessing import get_context

import pytest

from qkformer import files
from qkformer.files import Lock, one_at_a_time, remove_leftovers, write_text


def test_text_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "config.yml"
    write_text(path, "é: 1\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text(encoding="utf-8") == "é: 1\n"
    assert os.listdir(tmp_path) == ["config.yml"]


def test_a_file_gets_its_name_when_it_is_on_the_disk(tmp_path, monkeypatch):
    done = []

    def noting(name):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args: done.append(name) or function(*args))

    noting("fsync")
    noting("replace")
    write_text(tmp_path / "config.yml", "seed: 1\n")
    assert done == ["fsync", "replace", "fsync"]  # the content, the name, the folder


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    (tmp_path / ".last.pth.1234abcd.tmp").touch()
    for other in ("last.pth", ".editor.tmp"):
        (tmp_path / other).touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".editor.tmp", "last.pth"]


def hold(path, held, done):
    lock = Lock(path)  # not let go of as long as there is a name for it
    assert lock.take()
    held.set()
    done.wait()


def test_a_lock_keeps_other_processes_out_until_its_holder_is_gone(tmp_path):
    processes = get_context("fork")
    held, done = processes.Event(), processes.Event()
    other = processes.Process(target=hold, args=(tmp_path / "lock", held, done), daemon=True)
    other.start()
    assert held.wait(60)
    lock = Lock(tmp_path / "lock")
    assert not lock.take()
    done.set()  # it ends without a release
    other.join()
    assert lock.take()


def test_a_forked_process_does_not_keep_the_lock(tmp_path):
    """As loading processes would, which outlive a run that is killed."""
    processes = get_context("fork")
    lock, done = Lock(tmp_path / "lock"), processes.Event()
    assert lock.take()
    child = processes.Process(target=done.wait, daemon=True)
    child.start()
    lock.release()
    other = processes.Process(target=hold, args=(tmp_path / "lock", processes.Event(), done))
    other.start()
    done.set()
    other.join()
    assert other.exitcode == 0


def test_where_a_file_system_knows_no_locks_there_is_none(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "lockf", unsupported)
    with pytest.warns(UserWarning, match=f"{tmp_path}: files cannot be locked there"):
        assert Lock(tmp_path / "lock").take()


def test_others_wait_for_their_turn_and_say_so(tmp_path, monkeypatch, capsys):
    processes = get_context("fork")
    held, done = processes.Event(), processes.Event()
    other = processes.Process(target=hold, args=(tmp_path / "lock", held, done), daemon=True)
    other.start()
    assert held.wait(60)
    monkeypatch.setattr(files, "SECONDS_BEFORE_FIRST_LINE", 0)
    said = []

    def sleep(_):
        said.append(capsys.readouterr().out)
        if len(said) == 3:
            done.set()
            other.join()

    monkeypatch.setattr(files.time, "sleep", sleep)
    with one_at_a_time(tmp_path / "lock", "prepares data"):
        assert "".join(said) == "waiting for another process that prepares data\n"
        assert not another_process_gets(tmp_path / "lock")
    assert another_process_gets(tmp_path / "lock")


def another_process_gets(path):
    processes = get_context("fork")
    got = processes.Value("b")

    def take():
        got.value = Lock(path).take()

    other = processes.Process(target=take)
    other.start()
    other.join()
    return bool(got.value)
