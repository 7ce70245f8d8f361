"""Every setting (`schema`) and how it is given (`loading`)."""
