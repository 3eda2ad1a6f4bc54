"""What a release of Open-Sora is, as data: one frozen description each."""
