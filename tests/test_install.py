"""`make setup`: one installs while others wait, and what was interrupted does not count as complete."""

import threading

import install
import pytest


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with requirements, whose installation is only counted."""
    for name in ("requirements.txt", "requirements-cpu.txt", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".venv").mkdir()
    built = []
    monkeypatch.setattr(install, "build", built.append)
    return tmp_path, built


def test_what_is_installed_is_not_installed_again(place):
    root, built = place
    install.main(root)
    install.main(root)
    assert built == [root]
    (root / "requirements.txt").write_text("others")
    install.main(root)
    assert built == [root, root]


def test_a_second_setup_waits_and_then_finds_the_packages(place, monkeypatch, capsys):
    root, built = place
    waits = threading.Event()
    monkeypatch.setattr(install.time, "sleep", lambda seconds: waits.set())
    second = threading.Thread(target=install.main, args=[root])
    with install.alone(root):
        second.start()
        assert waits.wait(10)
        install.stamp_of(root).touch()
    second.join(10)
    assert built == [] and "waiting for another `make setup`" in capsys.readouterr().out


def test_an_interrupted_setup_is_not_taken_for_complete(place, monkeypatch):
    root, built = place
    install.main(root)
    was = install.stamp_of(root)
    (root / "requirements.txt").write_text("others")

    def stop(root):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(install, "build", stop)
        install.main(root)
    assert not was.exists() and not install.stamp_of(root).exists()
    install.main(root)
    assert len(built) == 2
