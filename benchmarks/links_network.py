"""Two hosts on one machine, joined by a link whose rate is set.

The hosts are network namespaces, the link is a veth pair, and a token bucket
(tbf) at each end limits what that end sends. Needs root, and the commands `ip`
and `tc` of iproute2.

A bucket lets as many bytes pass free of charge after each pause as it holds, so
it has to be small, or small messages cost nothing. One of 0.4 ms of the rate
keeps the rate: it covers the time that the kernel takes to wake. It may be
smaller than the 64 KB packets of TCP segmentation offload, which tbf divides
into packets of the MTU, but not than one of these. Large ones cost less of the
sender's core: at 3 Gbit/s a stream in packets of 1,500 bytes got 56 to 90 % of
the rate, of 9,000 bytes 85 to 96 %, on a busy machine.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess

ADDRESSES = ("10.78.0.1", "10.78.0.2")
# The name of the interface in both namespaces.
INTERFACE = "cable"
UNSHAPED = "unshaped"
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_BURST_SECONDS = 4e-4
_LEAST_BURST = 4000
_SMALL_MTU, _LARGE_MTU = 1500, 9000


def to_bytes_per_second(rate: str) -> float:
  """Converts a rate of tc, as 100mbit; infinite if unshaped.

  Raises:
    ValueError: it is no rate.
  """
  if rate == UNSHAPED:
    return float("inf")
  number, unit = rate[:-4], rate[-4:]
  if unit not in _UNITS or not number.isdecimal() or not int(number):
    raise ValueError(
      f"the rate is {rate!r}, expected {UNSHAPED}, or an integer with kbit, "
      "mbit or gbit, as 100mbit. Set --rates."
    )
  return int(number) * _UNITS[unit] / 8


def to_burst(rate: str) -> int | None:
  """The bytes that the bucket of a rate holds; None if unshaped."""
  if rate == UNSHAPED:
    return None
  return max(_LEAST_BURST, round(to_bytes_per_second(rate) * _BURST_SECONDS))


class Link:
  """Two namespaces joined by a cable, until it is closed.

  gloo listens at the address of the host's name, so each namespace needs a
  hosts file of its own; `ip netns exec` shows it in the place of the system's.

  Attributes:
    names: of the namespaces.

  Raises:
    OSError: this process may not make them.
  """

  def __init__(self):
    if os.geteuid():
      raise OSError("only root may make network namespaces. Run it as root.")
    if not shutil.which("ip") or not shutil.which("tc"):
      raise OSError("ip and tc are not installed. Install iproute2.")
    self.names = [f"links{os.getpid()}{end}" for end in "ab"]
    try:
      self._make()
    except BaseException:
      self.close()
      raise

  def _make(self) -> None:
    for name in self.names:
      _run("ip", "netns", "add", name)
    ends = [("name", INTERFACE, "netns", name) for name in self.names]
    _run("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
    for name, address in zip(self.names, ADDRESSES, strict=True):
      folder = pathlib.Path("/etc/netns", name)
      folder.mkdir(parents=True)
      (folder / "hosts").write_text(
        f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n"
      )
      _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
      for interface in ("lo", INTERFACE):
        _run("ip", "-n", name, "link", "set", interface, "up")
    self.shape(UNSHAPED)

  def shape(self, rate: str) -> None:
    """Sets the rate of both ends, while nothing is sent."""
    burst = to_burst(rate)
    mtu = _LARGE_MTU
    if burst is not None and burst < 2 * _LARGE_MTU:
      mtu = _SMALL_MTU
    for name in self.names:
      _run("ip", "-n", name, "link", "set", INTERFACE, "mtu", mtu)
      qdisc = ("tc", "-n", name, "qdisc")
      where = ("dev", INTERFACE, "root")
      if "tbf" in _run(*qdisc, "show", "dev", INTERFACE):
        _run(*qdisc, "del", *where)
      if rate != UNSHAPED:
        bucket = ("burst", f"{burst}b", "latency", "200ms")
        _run(*qdisc, "add", *where, "tbf", "rate", rate, *bucket)

  def close(self) -> None:
    for name in self.names:
      subprocess.run(["ip", "netns", "del", name], capture_output=True)
      shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


def _run(*arguments: object) -> str:
  words = [str(word) for word in arguments]
  done = subprocess.run(words, capture_output=True, text=True)
  if done.returncode:
    raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
  return done.stdout
