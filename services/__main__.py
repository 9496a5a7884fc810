"""``python -m services`` is ``depthcast``."""

from services.cli import main

main()
