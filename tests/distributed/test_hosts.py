"""Hosts apart: one process in each of two network namespaces."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from tests import processes

pytestmark = pytest.mark.hosts

ADDRESSES = ("10.77.0.1", "10.77.0.2")


class Hosts:
  """Two network namespaces joined by a cable, each with a hosts file.

  gloo listens at the address of the host's name, so each namespace needs a
  hosts file of its own; `ip netns exec` shows it in the place of the system's.
  """

  def __init__(self):
    self.names = [f"alexnet{os.getpid()}{end}" for end in "ab"]
    self.links = [f"an{os.getpid() % 100_000}{end}" for end in "ab"]

  def ip(self, *arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
      raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout

  def make(self):
    for name in self.names:
      self.ip("netns", "add", name)
    first, second = self.links
    self.ip("link", "add", first, "type", "veth", "peer", "name", second)
    for name, link, address in zip(
      self.names, self.links, ADDRESSES, strict=True
    ):
      folder = pathlib.Path("/etc/netns", name)
      folder.mkdir(parents=True)
      (folder / "hosts").write_text(
        f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n"
      )
      self.ip("link", "set", link, "netns", name)
      self.ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
      self.ip("-n", name, "link", "set", "lo", "up")
    self.plug()

  def plug(self):
    for name, link in zip(self.names, self.links, strict=True):
      self.ip("-n", name, "link", "set", link, "up")

  def unplug(self):
    self.ip("-n", self.names[1], "link", "set", self.links[1], "down")

  def sent(self):
    """Bytes that each host has sent over the cable."""
    files = [
      f"/sys/class/net/{link}/statistics/tx_bytes" for link in self.links
    ]
    return [
      int(self.ip("netns", "exec", name, "cat", file))
      for name, file in zip(self.names, files, strict=True)
    ]

  def start(self, tmp, arguments):
    return processes.start(
      tmp,
      2,
      arguments,
      address=f"{ADDRESSES[0]}:7777",
      prefix=lambda index: ["ip", "netns", "exec", self.names[index]],
    )

  def remove(self):
    for name in self.names:
      subprocess.run(["ip", "netns", "del", name], capture_output=True)
      shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


@pytest.fixture(scope="module")
def hosts():
  if shutil.which("ip") is None:
    pytest.skip("no `ip`: Debian's iproute2 has it")
  made = Hosts()
  try:
    try:
      made.make()
    except (OSError, RuntimeError) as error:
      pytest.skip(f"network namespaces are not allowed here ({error})")
    yield made
  finally:
    made.remove()


def test_hosts_train_over_the_link_with_the_same_numbers(hosts, folder):
  tmp, alone = folder("apart"), folder("alone")
  before = hosts.sent()
  running = hosts.start(tmp, processes.flags("two_device", tmp))
  (code, out, errors), other = processes.finish(running)
  assert code == other[0] == 0, errors + other[2]
  planned = float(re.search(r"sends ([\d.]+) MB from each device", out)[1])
  planned = 1e6 * (planned - 0.0005)  # it is rounded
  for sent, earlier in zip(hosts.sent(), before, strict=True):
    assert sent - earlier > 9 * planned  # nine steps, and what frames them
  processes.train_local(alone, 1, 2)
  for one, same in zip(
    processes.metrics(tmp), processes.metrics(alone), strict=True
  ):
    for name in one.keys() - {"images_per_second"}:
      np.testing.assert_allclose(one[name], same[name], rtol=1e-6, atol=1e-6)


def begin(hosts, tmp):
  """A run that would go on for long, in its third report."""
  arguments = processes.flags("two_device", tmp, {"num_epochs": 1000.0})
  running = hosts.start(tmp, arguments)
  processes.wait_for_step(tmp, 6, running)
  return running


def test_link_that_is_cut_ends_both(hosts, folder):
  running = begin(hosts, folder("cut"))
  start = time.monotonic()
  hosts.unplug()
  try:
    done = processes.finish(running, timeout=60)
  finally:
    hosts.plug()
  assert time.monotonic() - start < 60
  for index, (code, _, errors) in enumerate(done):
    assert code == 69, errors
    assert re.search(
      rf"^error: process {index} of 2 .* ends because process {1 - index} of 2 "
      rf"\(.* {re.escape(ADDRESSES[1 - index])}\) is lost",
      processes.last_error(errors),
    )


# Process 0: test_ends.py.
def test_process_that_is_stopped_ends_the_other(hosts, folder):
  first, second = begin(hosts, folder("stopped"))
  # `ip netns exec` has become the program: it is the process itself.
  second.send_signal(signal.SIGSTOP)
  ((code, _, errors),) = processes.finish([first], timeout=60)
  second.kill()
  second.communicate()
  assert code == 69
  assert re.search(
    r"because process 1 of 2 .* is lost", processes.last_error(errors)
  )
