"""The same model behind other systems: each a small script that runs in an environment of its own."""
