"""What ``dev.py`` and the tests share: the environment, a ComfyUI to run in, and a server to talk to.

Standard library only: these modules run before any environment exists. They never import the pack.
"""
