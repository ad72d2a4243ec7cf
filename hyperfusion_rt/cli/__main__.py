"""`python -m hyperfusion_rt.cli`."""

from hyperfusion_rt.cli.start import main

main()
