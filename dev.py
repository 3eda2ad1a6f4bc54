"""One door for everything a developer does: ``python dev.py demo | test | serve | bench | golden``.

It sets itself up: a virtual environment and a real ComfyUI below ``.comfyui/``. ``python dev.py --help`` tells more.
"""

import sys

OLDEST = (3, 10)

# Old Pythons read this file too, and shall be told instead of failing on the syntax.
if sys.version_info < OLDEST:
    message = "dev.py needs Python {}.{} or newer, this is {}.{}. Run it with another one: python3.11 dev.py"
    sys.exit(message.format(*(OLDEST + tuple(sys.version_info[:2]))))

if __name__ == "__main__":
    from devtools.commands import main

    sys.exit(main())
