"""Command-line programs: flags -> one library call -> files."""
