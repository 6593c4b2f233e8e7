"""The guard of the inner loop: a test that is not marked slow cannot open a socket, start a process or sleep."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = f"""\
import sys
import pytest

sys.path.insert(0, {str(Path(__file__).parent)!r})
from quick import Guard

GUARD = Guard()

@pytest.fixture
def listener():
    import pynng
    with pynng.Pair0() as socket:
        yield socket

@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    return (yield from GUARD.watch(item))

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from GUARD.watch(item))
"""
TESTS = """\
import contextlib, multiprocessing, os, socket, subprocess, sys, threading, time
import pynng, pytest

def test_socket():
    socket.socket()

def test_nng():
    pynng.Push0()

def test_caught():
    with contextlib.suppress(BaseException):
        subprocess.run([sys.executable, "-c", ""])

def test_spawn():
    multiprocessing.get_context("spawn").Process(target=print)

def test_fork():
    os.fork()

def test_sleep():
    time.sleep(0.001)

def test_thread():
    def sleep():
        with contextlib.suppress(BaseException):
            time.sleep(0.001)
    thread = threading.Thread(target=sleep)
    thread.start()
    thread.join()

def test_fixture(listener):
    pass

def test_quick():
    time.sleep(0)
    threading.Event().wait(0.001)

@pytest.mark.slow
def test_slow(listener):
    time.sleep(0.001)
    socket.socketpair()[0].close()
"""


def test_unmarked_test_that_needs_more_than_the_processor_fails(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "ignore")
    result.assert_outcomes(failed=7, errors=1, passed=2)
    result.stdout.fnmatch_lines(["*a quick test opens a socket of nng: mark it slow*"])
