"""``batch.py``: every row of a table made by a workflow, on servers that run already or on Ray's machines.

It stands in ``devtools/`` because it speaks to ComfyUI through the same client as ``dev.py`` and the tests. Standard
library only; Ray is imported by ``ray_engine.py`` alone, and only where ``--ray`` was given.
"""
