"""``python -m openoutcry.actors.cli`` is ``openoutcry``."""

from . import main

main(prog_name="openoutcry")
