"""Speed, compared side by side in one run as ratios: `python -m benchmark.<what> --help`."""
