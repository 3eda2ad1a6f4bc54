"""What every message of this pack goes through before a log, a terminal or a page shows it."""
