"""Steps of a run that are not computed: which ones, what stands in for them, and how far that moves the result."""
