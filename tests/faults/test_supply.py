"""What is installed is what was pinned, under licences that allow it."""

import socket

import pytest

from faults import supply


@pytest.mark.parametrize("name", supply.HASHED)
def test_every_requirement_is_pinned_with_its_hash(name):
    pins = supply.read_pins(name)
    assert len(pins) > (0 if name in ("build", "torch") else 20)
    assert [pin.name for pin in pins if not pin.hashes] == []


def test_a_requirement_without_version_would_be_found(tmp_path, monkeypatch):
    (tmp_path / "requirements").mkdir()
    monkeypatch.setattr(supply, "REPOSITORY", tmp_path)
    path = tmp_path / "requirements" / "core.txt"
    path.write_text("a==1 \\\n    --hash=sha256:" + "0" * 64 + "\nb>=2\n")
    with pytest.raises(ValueError, match="'b>=2'"):
        supply.read_pins("core")
    path.write_text("a==1\n")
    assert supply.read_pins("core") == [supply.Pin("a", "1", ())]


def test_every_licence_is_known_and_the_table_is_whole():
    assert supply.build_table() in supply.DOCUMENT.read_text(encoding="utf-8")


def test_a_licence_that_is_not_known_would_be_found(tmp_path, monkeypatch):
    pins = [supply.Pin("no-such-package", "1", ())]
    monkeypatch.setattr(supply, "read_pins", lambda name: pins)
    monkeypatch.setattr(supply, "DOCUMENT", tmp_path / "licences.md")
    for licence in ("?", "GPL-3.0", "MIT AND GPL-3.0"):
        supply.DOCUMENT.write_text(f"| no-such-package | 1 | {licence} | core |")
        with pytest.raises(ValueError, match="no-such-package is under"):
            supply.build_table()
    supply.DOCUMENT.write_text("| no-such-package | 1 | MIT AND ISC | core |")
    assert "| no-such-package | 1 | MIT AND ISC | core |" in supply.build_table()


def test_the_world_outside_is_out_of_reach():
    for address in (("192.0.2.1", 80), ("2001:db8::1", 80)):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with socket.socket(family) as outside:
            outside.settimeout(5)
            with pytest.raises(PermissionError, match="loopback"):
                outside.connect(address)
    with pytest.raises(PermissionError, match="loopback"):
        socket.create_connection(("198.51.100.7", 443), timeout=5)
