"""Rectified-flow sampling rules as pure functions on tensors and numbers."""
