"""One clip on several devices: which rank holds which part, how parts change hands, and what that costs.

A *rank* is one process with one device. Rows of a batch (guidance rows, clips) go to different ranks, which need not
talk; the tokens of a row are shared among ranks, which exchange them inside the blocks. Both are exact.
"""
