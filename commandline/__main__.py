"""``python -m commandline`` is ``jfb``."""

from commandline import main

main()
