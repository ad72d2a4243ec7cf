"""`python -m hyperfusion_rt.cli`."""

from hyperfusion_rt.cli.app import main

main()
