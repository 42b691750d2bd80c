"""What is this machine only."""

from pipeline.serving.hosts import is_loopback


def test_what_is_this_machine_only():
    for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1", "[::1]"):
        assert is_loopback(host), host
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", "127.0.0.1.example.org", "localhost.org", ""):
        assert not is_loopback(host), host
