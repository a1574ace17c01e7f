"""Every gradient and every number, checked: `python -m minisegnet.verify`."""
