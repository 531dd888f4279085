"""The demo: small virtual machines, real or simulated, with block jobs to look at."""
