"""Results for readers: terminal, Markdown, CSV, JSON."""
