"""Speed, compared side by side in one run as ratios: `./scripts/benchmark WHAT --help`."""
