"""What every layer may use: ids, limits, errors. Nothing here does I/O or holds state."""
