"""Open-Sora's prompt language: cleaning, score wording, segments."""
