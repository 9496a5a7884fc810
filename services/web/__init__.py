"""The page at `/`: plain ES modules, no build step, nothing from other hosts."""
