"""What the networks of all releases share: attention, arithmetic, rotary positions."""
