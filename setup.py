"""The opt-in compiled build: ``OPENOUTCRY_MYPYC=1 pip install .``. All else is in setup.cfg.

mypyc compiles the modules of the matching engine, unchanged, to a C extension beside each of them; Python prefers it
to the source. It needs a C compiler.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup

COMPILED = ("actors/book/commands.py", "actors/book/orderbook.py")
GROUP = "openoutcry.actors.book.engine"
STAGE = Path("build", "mypyc")
METADATA_COMMANDS = {"egg_info", "dist_info"}


def compiled_modules() -> list[Extension]:
    """Return the extensions, translated to C in :data:`STAGE`, where folders are called as they are imported."""
    if METADATA_COMMANDS & set(sys.argv):  # nothing is built, and what builds it need not be installed yet
        return []
    from mypyc.build import mypycify  # noqa: PLC0415 (installed for this build only)

    root, package = Path.cwd(), STAGE / "openoutcry"
    shutil.rmtree(STAGE, ignore_errors=True)
    for folder in ("actors", "transport"):
        shutil.copytree(folder, package / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    os.chdir(STAGE)  # mypy names a module by where it lies below the current folder
    try:
        options = ["--config-file", str(root / "setup.cfg"), "--ignore-missing-imports", "--follow-imports=silent"]
        options += ["--no-site-packages"]  # there may be another version of this package
        bases = ["--namespace-packages", "--explicit-package-bases"]
        paths = [str(Path("openoutcry", path)) for path in COMPILED]
        extensions = mypycify([*options, *bases, *paths], group_name=GROUP, opt_level="3")
    finally:
        os.chdir(root)
    for extension in extensions:
        extension.sources = [str(STAGE / source) for source in extension.sources]
        extension.include_dirs = [str(STAGE / folder) for folder in extension.include_dirs]
    return extensions


if os.environ.get("OPENOUTCRY_MYPYC", "") not in ("", "0"):
    setup(ext_modules=compiled_modules(), setup_requires=["mypy>=1.13"])
else:
    setup()
