"""Many clips: ``python batch.py run WORKFLOW.json TABLE.csv --out DIR --servers URL… | --ray [ADDRESS]``.

Makes every row of a table and goes on after anything was killed. ``docs/scale.md`` tells more.
"""

import sys

OLDEST = (3, 10)

# Old Pythons read this file too, and shall be told instead of failing on the syntax.
if sys.version_info < OLDEST:
    message = (
        "batch.py needs Python {}.{} or newer, this is {}.{}. Run it with ComfyUI's own: .venv/bin/python batch.py"
    )
    sys.exit(message.format(*(OLDEST + tuple(sys.version_info[:2]))))

if __name__ == "__main__":
    from devtools.batch.commands import main

    sys.exit(main())
