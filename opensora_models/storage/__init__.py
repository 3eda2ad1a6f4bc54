"""What is kept on disk: whole files or nothing, pieces that prove themselves, one writer a folder."""
